"""The arithmetic around the CUDA kernels that a host compiler can check: tiles, grids and the choice of a variant."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Every tile of a grid is taken exactly once, whatever the band, by any number of workers.
TILES = """
#include <cstdio>
#include <vector>
#include "cuda/tile_scheduler.cuh"
using namespace glm5;
int main() {
  for (int rows : {1, 2, 3, 7, 8, 9, 16, 31, 64, 257}) {
    for (int columns : {1, 2, 5, 21, 41, 82}) {
      for (int band : {1, 2, 3, 8, 16}) {
        const cuda::TileGrid grid{rows, columns, static_cast<int>(smaller(band, rows))};
        std::vector<int> taken(rows * columns);
        for (int worker = 0; worker < 66; ++worker) {
          for (int tile = worker; tile < grid.count(); tile += 66) {
            const cuda::TilePlace place = grid.at(tile);
            if (place.row < 0 || place.row >= rows || place.column < 0 || place.column >= columns) return 1;
            ++taken[place.row * columns + place.column];
          }
        }
        for (int count : taken) if (count != 1) return 2;
      }
    }
  }
}
"""

# Every problem gets a variant that fits the chip and covers it, in one wave of persistent blocks.
CONFIGS = """
#include <cstdio>
#include <random>
#include "ops/fp8_gemm/config.h"
using namespace glm5;
using namespace glm5::fp8_gemm_sm90;
static_assert(choose_config(1, 6144, 16384).schedule == Schedule::swap_ab);
static_assert(choose_config(4096, 24576, 6144).schedule == Schedule::rows);
int legal(i64 m, i64 n, i64 k, bool per_row, int sms) {
  const Config config = choose_config(m, n, k, per_row, sms);
  const Variant& variant = kVariants[config.variant];
  const bool swapped = config.schedule == Schedule::swap_ab;
  const i64 left = swapped ? n : m, right = swapped ? m : n;
  if (per_row && !variant.per_row) return 1;
  if (config.smem_bytes > 227 * 1024 || config.smem_bytes % 1024 != 0) return 2;
  if (config.grid < 1 || config.grid > sms || config.grid % config.cluster != 0) return 3;
  if (config.left_tiles * variant.left < left || (config.left_tiles - 1) * variant.left >= left) return 4;
  if (config.right_tiles * variant.right < right || config.right_tiles % config.cluster != 0) return 5;
  if ((config.right_tiles - variant.cluster) * variant.right >= right) return 6;
  if (config.band < 1 || config.band > config.left_tiles) return 7;
  if (variant.left / variant.cluster % 8 != 0 || variant.right % 16 != 0 || variant.left > 256) return 8;
  if (describe(config).empty()) return 9;
  return 0;
}
int main() {
  for (i64 m : {1, 2, 16, 17, 64, 65, 128, 129, 192, 256, 1000, 4096, 65536}) {
    for (i64 n : {1, 8, 32, 128, 160, 576, 2624, 4096, 6144, 16384, 24576, 28672, 154880}) {
      for (i64 k : {1, 16, 128, 512, 2048, 6144, 16384}) {
        for (int sms : {2, 78, 114, 132}) {
          for (bool per_row : {false, true}) {
            if (const int fault = legal(m, n, k, per_row, sms)) {
              std::printf("limit %d broken at m %ld n %ld k %ld sms %d\\n", fault, long(m), long(n), long(k), sms);
              return 1;
            }
          }
        }
      }
    }
  }
}
"""

GEMM_CONFIGS = """
#include <cstdio>
#include "ops/gemm/config.h"
using namespace glm5;
using namespace glm5::gemm_sm90;
static_assert(choose_config(16, 6144, 2048, 1).schedule == Schedule::swap_ab);
static_assert(choose_config(4096, 24576, 6144, 1).schedule == Schedule::rows);
int legal(i64 m, i64 n, i64 k, i64 batch, const Layout& layout, int sms) {
  const Config config = choose_config(m, n, k, batch, layout, sms);
  const Variant& variant = kVariants[config.variant];
  const bool swapped = config.schedule == Schedule::swap_ab;
  const i64 left = swapped ? n : m, right = swapped ? m : n;
  if (layout.transposed_a && !variant.transposed_a) return 1;
  if (layout.by_hand && config.cluster != 1) return 2;
  if (config.smem_bytes > 227 * 1024 || config.smem_bytes % 1024 != 0) return 3;
  if (config.grid < 1 || config.grid > sms || config.grid % config.cluster != 0) return 4;
  if (config.left_tiles * variant.left < left || config.left_tiles % config.cluster != 0) return 5;
  if ((config.left_tiles - variant.cluster) * variant.left >= left) return 6;
  if (config.right_tiles * variant.right < right || (config.right_tiles - 1) * variant.right >= right) return 7;
  if (config.band < 1 || describe(config).empty()) return 8;
  return 0;
}
int main() {
  for (i64 m : {1, 16, 17, 65, 128, 129, 256, 1000, 4096, 65536}) {
    for (i64 n : {1, 32, 128, 160, 576, 2624, 6144, 28672, 154880}) {
      for (i64 k : {1, 16, 192, 512, 6144, 16384}) {
        for (i64 batch : {1, 3, 64}) {
          for (int sms : {2, 78, 132}) {
            for (int bits = 0; bits < 8; ++bits) {
              const Layout layout{bool(bits & 1), bool(bits & 2), bool(bits & 4)};
              if (const int fault = legal(m, n, k, batch, layout, sms)) {
                std::printf("limit %d broken at m %ld n %ld k %ld sms %d\\n", fault, long(m), long(n), long(k), sms);
                return 1;
              }
            }
          }
        }
      }
    }
  }
}
"""

# Spans and blocks cover every tile of every query; no buffer can overflow; the workspace is bounded by topk.
INDEXER_PLANS = """
#include <cstdio>
#include <vector>
#include "ops/indexer_topk/config.h"
using namespace glm5;
using namespace glm5::indexer_topk_sm90;
static_assert(choose_plan(128, 131072, 32, 2048).cut.splits == 8);
static_assert(choose_plan(32768, 32768, 32, 2048).cut.splits == 1);
int scores(i64 tokens, i64 keys, i64 heads, int sms) {
  const cuda::IndexerPlan plan = cuda::indexer_plan(tokens, keys, heads, sms);
  if (plan.grid < 1 || plan.grid > sms || plan.grid > plan.items() || plan.splits != 1) return 1;
  if (i64{plan.blocks} * plan.queries < tokens || (i64{plan.blocks} - 1) * plan.queries >= tokens) return 2;
  if (i64{plan.spans} * plan.span_tiles < plan.tiles || (i64{plan.spans} - 1) * plan.span_tiles >= plan.tiles) return 3;
  if (i64{plan.tiles} * 64 < keys || plan.queries * heads != 256) return 4;
  return 0;
}
int choice(i64 tokens, i64 keys, i64 heads, i64 topk) {
  const Plan plan = choose_plan(tokens, keys, heads, topk);
  const i64 chunk = i64{plan.chunk_tiles} * 64, share = ceil_div(i64{plan.cut.tiles}, plan.cut.splits) * 64;
  if (plan.cut.spans != 1 || plan.cut.splits < 1 || plan.cut.grid < 1 || plan.cut.grid > kSms) return 5;
  if (plan.capacity < share && plan.limit + chunk > plan.capacity) return 6;
  if (plan.limit != 0x7fffffff && plan.limit < topk + chunk) return 7;
  if (plan.slots < smaller(topk, share) || (plan.cut.splits > 1 && plan.cut.items() > 4 * kSms)) return 8;
  const i64 rows = larger(smaller(tokens, 8 * kSms), 8 * plan.cut.grid) + 4 * 8 * kSms;
  if (workspace_bytes(plan, tokens) > rows * (topk + 3 * chunk) * 8 + 2 * kAlignment) return 9;
  return 0;
}
int main() {
  for (i64 tokens : {1, 2, 7, 8, 9, 128, 600, 1055, 1056, 1057, 4096, 131072}) {
    for (i64 keys : {1, 63, 64, 65, 130, 4096, 131072, 1000000}) {
      for (i64 heads : {32, 64}) {
        for (int sms : {1, 2, 78, 132}) {
          if (const int fault = scores(tokens, keys, heads, sms)) {
            std::printf("limit %d broken at %ld tokens, %ld keys\\n", fault, long(tokens), long(keys));
            return 1;
          }
        }
        for (i64 topk : {1, 3, 512, 2048, 4096, 200000}) {
          if (const int fault = choice(tokens, keys, heads, topk)) {
            std::printf("limit %d broken at %ld tokens, %ld keys, topk %ld\\n", fault, long(tokens), long(keys),
                        long(topk));
            return 1;
          }
        }
      }
    }
  }
}
"""


def run(text: str, folder: Path, edit=lambda header: header) -> subprocess.CompletedProcess:
    """Compiles and runs a program; `edit` changes the library's headers first, to plant a fault."""
    configs = tuple(f"ops/{op}/config.h" for op in ("fp8_gemm", "gemm", "indexer_topk"))
    for name in ("cuda/tile_scheduler.cuh", "cuda/gemm_config.h", "cuda/indexer_plan.h", *configs):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(edit((ROOT / "csrc" / name).read_text()))
    (folder / "main.cpp").write_text(text)
    program = folder / "program"
    includes = [f"-I{folder}", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", "-std=c++20", "-O1", *includes, str(folder / "main.cpp"), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True)


def test_every_tile_is_taken_exactly_once(tmp_path):
    assert run(TILES, tmp_path).returncode == 0


@pytest.mark.parametrize("text", [CONFIGS, GEMM_CONFIGS, INDEXER_PLANS], ids=["fp8_gemm", "gemm", "indexer"])
def test_every_problem_gets_a_variant_that_fits(text, tmp_path):
    done = run(text, tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        (TILES, "in_band / height", "in_band / band"),
        (CONFIGS, "right_clusters * variant.cluster, left_tiles", "right_clusters, left_tiles"),
        (CONFIGS, "{Schedule::swap_ab, 64, 16, 1, 20, false}", "{Schedule::swap_ab, 64, 16, 1, 24, false}"),
        (GEMM_CONFIGS, "{Schedule::swap_ab, 64, 16, 1, 20, false}", "{Schedule::swap_ab, 64, 16, 1, 24, false}"),
        (GEMM_CONFIGS, "(variant.cluster == 1 || !layout.by_hand) &&", "true &&"),
        (INDEXER_PLANS, "ceil_div(tokens, queries), tiles", "tokens / queries, tiles"),
        (INDEXER_PLANS, "wanted = topk + 3 * chunk", "wanted = topk + chunk"),
    ],
)
def test_a_planted_fault_is_found(text, right, wrong, tmp_path):
    def plant(header: str) -> str:
        return header.replace(right, wrong)

    assert run(text, tmp_path, plant).returncode != 0
