// The element types that cross a boundary: what a checkpoint may hold and what a kernel tensor is made of.
// `code` is the number the native core knows a dtype by (native/src/dtype.h keeps the same table).

export interface DTypeRow {
  readonly code: number;
  readonly bytes: number;
}

export const DTYPES = {
  BF16: { code: 0, bytes: 2 },
  F16: { code: 1, bytes: 2 },
  F32: { code: 2, bytes: 4 },
  F8_E4M3: { code: 3, bytes: 1 },
  U8: { code: 4, bytes: 1 },
  F8_E8M0: { code: 5, bytes: 1 },
} as const satisfies Record<string, DTypeRow>;

export type DType = keyof typeof DTYPES;

/** Bits of every element type that the safetensors format knows; a checkpoint may hold them all in tensors nobody reads. */
export const FORMAT_DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const satisfies Record<string, number> & Record<DType, number>;
export type FormatDType = keyof typeof FORMAT_DTYPE_BITS;

/** The float types a checkpoint tensor may have and still be placed and quantized. */
export const SOURCE_DTYPES = ["BF16", "F16", "F32"] as const satisfies readonly DType[];
export type SourceDType = (typeof SOURCE_DTYPES)[number];

/** What scales of FP8 codes may be on disk; E8M0 is an exponent alone, exactly a power of two. */
export const SCALE_DTYPES = [...SOURCE_DTYPES, "F8_E8M0"] as const satisfies readonly DType[];
export type ScaleDType = (typeof SCALE_DTYPES)[number];

/** What a tensor that is loaded may be on disk: values, FP8 codes that have scales beside them, or those scales. */
export type StoredDType = "F8_E4M3" | ScaleDType;

/** What the request's `dtype` may say, and the dtype it means (`auto`: as in the checkpoint). */
export const REQUEST_DTYPES = {
  auto: null,
  bfloat16: "BF16",
  float16: "F16",
  float32: "F32",
} as const satisfies Record<string, SourceDType | null>;
export type RequestDType = keyof typeof REQUEST_DTYPES;

export function isSourceDType(name: string): name is SourceDType {
  return (SOURCE_DTYPES as readonly string[]).includes(name);
}

export function isScaleDType(name: string): name is ScaleDType {
  return (SCALE_DTYPES as readonly string[]).includes(name);
}

export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, dimension) => product * dimension, 1);
}

export function byteCount(dtype: DType, shape: readonly number[]): number {
  return elementCount(shape) * DTYPES[dtype].bytes;
}
