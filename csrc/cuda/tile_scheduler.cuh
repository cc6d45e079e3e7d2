// TileGrid: the order in which persistent blocks take the tiles of a matrix product.
//
// Tiles are taken in bands of `band` rows of tiles, down the band first: the tiles that run at one time then form a
// block that is about as high as wide, and read each row and column of operands from memory about once per band.
// Worker w of `workers` takes tiles w, w + workers, w + 2 workers, ...
#pragma once

#include "core/tensor.h"

namespace glm5::cuda {

struct TilePlace {
  int row, column;
};

struct TileGrid {
  int rows, columns, band;

  GLM5_INLINE constexpr int count() const { return rows * columns; }

  GLM5_INLINE constexpr TilePlace at(int index) const {
    const int band_index = index / (band * columns);
    const int first_row = band_index * band;
    const int height = static_cast<int>(smaller(band, rows - first_row));
    const int in_band = index - first_row * columns;
    return {first_row + in_band % height, in_band / height};
  }
};

}  // namespace glm5::cuda
