// The two functions that compiled code calls and that no module defines: vprintf and __assertfail.
#include <cstdio>
#include <cstring>

#include "control.h"
#include "lanes.h"
#include "memory.h"
#include "report.h"

namespace glm5::emulator {
namespace {

template <class T>
T argument(Warp& warp, const CallSite& site, size_t index, int lane) {
  const PlaceOfVariable& place = site.external_arguments.at(index);
  T value;
  std::memcpy(&value, warp.registers.data() + place.area + static_cast<u32>(lane) * place.lane_bytes, sizeof value);
  return value;
}

// A zero-terminated text in device memory, byte by byte under the checks.
std::string text_at(Warp& warp, int lane, u64 address) {
  std::string text;
  if (address == 0) return "(null)";
  for (;; ++address) {
    check_bytes(warp, lane, Access::read, address, 1);
    const char c = *reinterpret_cast<const char*>(address);
    if (c == '\0') return text;
    text += c;
  }
}

// The arguments lie packed at their natural alignment; %s takes an address.
std::string formatted(Warp& warp, int lane, const std::string& format, u64 arguments) {
  std::string out;
  u64 at = arguments;
  const auto next = [&](u64 bytes) {
    at = (at + bytes - 1) / bytes * bytes;
    check_bytes(warp, lane, Access::read, at, bytes);
    u64 value = 0;
    std::memcpy(&value, reinterpret_cast<const void*>(at), bytes);
    at += bytes;
    return value;
  };
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    std::string spec = "%";
    bool is_long = false;
    while (++i < format.size() && !std::strchr("diouxXcsfFeEgGaAp%", format[i])) {
      if (format[i] == 'l' || format[i] == 'z') is_long = true;
      else if (format[i] != 'h')
        spec += format[i] == '*' ? std::to_string(static_cast<i32>(next(4))) : std::string(1, format[i]);
    }
    if (i >= format.size()) break;
    char buffer[512];
    const char kind = format[i];
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (kind == 's') {
      std::snprintf(buffer, sizeof buffer, (spec + "s").c_str(), text_at(warp, lane, next(8)).c_str());
    } else if (std::strchr("fFeEgGaA", kind)) {
      std::snprintf(buffer, sizeof buffer, (spec + kind).c_str(), __builtin_bit_cast(double, next(8)));
    } else if (kind == 'p') {
      std::snprintf(buffer, sizeof buffer, "%p", reinterpret_cast<void*>(next(8)));
    } else if (is_long) {
      std::snprintf(buffer, sizeof buffer, (spec + "ll" + kind).c_str(), next(8));
    } else {
      std::snprintf(buffer, sizeof buffer, (spec + kind).c_str(), static_cast<u32>(next(4)));
    }
    out += buffer;
  }
  return out;
}

}  // namespace

Step run_vprintf(Warp& warp, const CallSite& site, u32 mask) {
  each_lane(mask, [&](int lane) {
    const auto format = text_at(warp, lane, argument<u64>(warp, site, 0, lane));
    const auto out = formatted(warp, lane, format, argument<u64>(warp, site, 1, lane));
    std::fputs(out.c_str(), stdout);
    if (!site.external_result.exists) return;
    const u32 count = static_cast<u32>(out.size());
    const PlaceOfVariable& place = site.external_result;
    std::memcpy(warp.registers.data() + place.area + static_cast<u32>(lane) * place.lane_bytes, &count, sizeof count);
  });
  std::fflush(stdout);
  return Step::next;
}

Step run_assertfail(Warp& warp, const CallSite& site, u32 mask) {
  const int lane = first_lane(mask);
  fault(warp, lane, "assert", "assertion `", text_at(warp, lane, argument<u64>(warp, site, 0, lane)), "` failed in ",
        text_at(warp, lane, argument<u64>(warp, site, 3, lane)), " at ",
        text_at(warp, lane, argument<u64>(warp, site, 1, lane)), ":", argument<u32>(warp, site, 2, lane));
}

}  // namespace glm5::emulator
