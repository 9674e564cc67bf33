// fp8-channel quantization of one row, written down from its definition alone and as slowly as it likes: what Layercast's own
// bytes are checked against.

/** Every non-negative E4M3 value by its code, 0x00 to 0x7E; 448 is the last. */
const E4M3_VALUES = Array.from({ length: 0x7f }, (_, code) => {
  const exponent = code >> 3;
  const fraction = (code & 7) / 8;
  return exponent === 0 ? fraction * 2 ** -6 : (1 + fraction) * 2 ** (exponent - 7);
});

const SMALLEST_SCALE = Math.fround(1 / (448 * 512));

export function quantizeRow(values: Float32Array): { scale: number; codes: Uint8Array } {
  const amax = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const scale = Math.max(Math.fround(amax / 448), SMALLEST_SCALE);
  return { scale, codes: Uint8Array.from(values, (value) => toE4M3(Math.fround(value / scale))) };
}

/** To the nearest value, of two equally near the one with the even code; beyond 448 is 448. */
function toE4M3(value: number): number {
  const magnitude = Math.abs(value);
  const sign = Object.is(Math.sign(value), -0) || value < 0 ? 0x80 : 0;
  let low = 0;
  let high = E4M3_VALUES.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (e4m3Value(middle) <= magnitude) low = middle;
    else high = middle;
  }
  const toLow = magnitude - e4m3Value(low);
  const toHigh = e4m3Value(high) - magnitude;
  const nearest = toLow === toHigh ? low + (low & 1) : toLow < toHigh ? low : high;
  return sign | nearest;
}

function e4m3Value(code: number): number {
  return E4M3_VALUES[code] ?? Number.NaN;
}

export function floatsOfBf16(bytes: Uint8Array): Float32Array {
  const halves = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const words = Uint32Array.from(
    { length: bytes.byteLength / 2 },
    (_, index) => halves.getUint16(2 * index, true) << 16,
  );
  return new Float32Array(words.buffer);
}
