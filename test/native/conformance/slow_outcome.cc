// The oracle of the oracle: the recipes and the digest from their definitions, element by element.
#include <cmath>
#include <cstring>

#include "program.h"
#include "scheme_reference.h"

namespace layercast::conformance {
namespace {

using namespace layercast::test;

double value_of(const ByteVector& matrix, uint64_t element, DType dtype) {
  if (dtype == DType::bf16) return bf16_value(value_at<uint16_t>(matrix, 2 * element));
  if (dtype == DType::f16) return f16_value(value_at<uint16_t>(matrix, 2 * element));
  return value_at<float>(matrix, 4 * element);
}

float rounded(double value, DType round) {
  if (round == DType::bf16) return static_cast<float>(nearest(value, kBf16));
  if (round == DType::f16) return static_cast<float>(nearest(value, kF16));
  return static_cast<float>(value);
}

float without_infinity(float value) {
  return std::isinf(value) ? std::copysign(std::numeric_limits<float>::max(), value) : value;
}

uint64_t index_of_scale(const Op& op, uint64_t element) {
  return scale_index_reference(op.scheme, element / op.cols, element % op.cols, op.cols);
}

uint32_t value_bits(float value, DType out) {
  if (out == DType::bf16) return bf16_reference(value);
  if (out == DType::f16) return f16_reference(value);
  if (std::isnan(value)) return std::signbit(value) ? 0xFFC00000u : 0x7FC00000u;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

/// Writes bytes one by one, each digested alone.
void write(Outcome& outcome, uint64_t offset, const void* from, uint64_t size) {
  const auto* bytes = static_cast<const uint8_t*>(from);
  for (uint64_t i = 0; i < size; i++) {
    const uint64_t at = offset + i;
    outcome.half[at] = bytes[i];
    const uint64_t shifted = static_cast<uint64_t>(bytes[i]) << (8 * (at % 4));
    outcome.digest += (mix(~(at / 256)) | 1) * ((mix(at % 256 / 4 + 1) | 1) * shifted);
  }
  outcome.bytes_written += size;
}

BadElements bad_of(const Op& op, const std::vector<float>& values) {
  BadElements bad = {kNoElement, kNoElement};
  for (uint64_t i = values.size(); i-- > 0;) {
    if (!std::isfinite(values[i])) bad.non_finite = i;
    if (std::isfinite(values[i]) && op.must_be_positive && !(values[i] > 0)) bad.not_positive = i;
  }
  return bad;
}

void write_values(const OpSpec& spec, const ByteVector& matrix, const std::vector<float>& values, Outcome& outcome) {
  const Op& op = spec.op;
  const uint64_t size = dtype_bytes(op.out_dtype);
  const bool kept = spec.source == op.out_dtype && (spec.round == DType::none || spec.round == spec.source);
  for (uint64_t i = 0; i < values.size(); i++) {
    const uint32_t bits = value_bits(values[i], op.out_dtype);
    write(outcome, op.out_offset + i * size, kept ? static_cast<const void*>(&matrix[i * size]) : &bits, size);
  }
}

void write_codes(const Op& op, const std::vector<float>& values, Outcome& outcome) {
  std::vector<float> scales(scale_count(op), 0.0f);
  for (uint64_t i = 0; i < values.size(); i++) {
    float& amax = scales[index_of_scale(op, i)];
    if (!std::isnan(values[i])) amax = std::max(amax, std::abs(without_infinity(values[i])));
  }
  for (float& scale : scales) scale = scale_reference(op.scheme, scale);
  for (uint64_t i = 0; i < values.size(); i++) {
    const uint8_t code = code_reference(op.scheme, without_infinity(values[i]), scales[index_of_scale(op, i)]);
    write(outcome, op.out_offset + i, &code, 1);
  }
  write(outcome, static_cast<uint64_t>(op.scale_offset), scales.data(), 4 * scales.size());
}

}  // namespace

Outcome slow_outcome(const Program& program) {
  Outcome outcome = {ByteVector(program.half_bytes, kUntouched), {}, 0, 0};
  for (size_t i = 0; i < program.specs.size(); i++) {
    const OpSpec& spec = program.specs[i];
    std::vector<float> values(spec.op.rows * spec.op.cols);
    for (uint64_t element = 0; element < values.size(); element++) {
      values[element] = rounded(value_of(program.matrices[i], element, spec.source), spec.round);
    }
    outcome.bad.push_back(bad_of(spec.op, values));
    if (spec.op.scheme == Scheme::none) {
      write_values(spec, program.matrices[i], values, outcome);
    } else {
      write_codes(spec.op, values, outcome);
    }
  }
  return outcome;
}

}  // namespace layercast::conformance
