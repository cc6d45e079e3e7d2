// Decoding that the asynchronous instructions share, and the tables they are in.
#pragma once

#include "async_state.h"
#include "decoder.h"
#include "mbarrier.h"

namespace glm5::emulator {

inline AddressRow decode_address(Decoder& decoder, const TextOperand& operand, Space space) {
  if (operand.kind != TextOperand::Kind::address) decoder.fail("an operand is not an address");
  const Decoder::AddressRow found = decoder.address_row(operand, space);
  AddressRow address;
  address.row = found.row;
  address.offset = found.offset;
  address.is_64 = found.is_64;
  return address;
}

std::span<const Entry> mbarrier_entries();
std::span<const Entry> copy_entries();
std::span<const Entry> bulk_entries();
std::span<const Entry> wgmma_entries();
std::span<const Entry> matrix_entries();
std::span<const Entry> tensor_map_entries();

}  // namespace glm5::emulator
