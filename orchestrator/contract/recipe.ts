// The quantization schemes: what each one makes of a linear weight [N, K]. The exact arithmetic is the native core's
// (docs/kernel-tensors.md); this table holds what the planner must know. docs/adding-a-recipe.md adds a row.

export interface SchemeRow {
  /** The number the native core knows the scheme by (native/src/scheme.h). */
  readonly code: number;
  /** What is appended to the weight's name for its scale tensor; null when nothing is quantized. */
  readonly scaleSuffix: "_scale" | "_scale_inv" | null;
  /**
   * Rows of a matrix that the native core can write without seeing the others, as many or a multiple, from the first on;
   * "all": it must see the whole matrix, as for one scale.
   */
  readonly rowsTogether: number | "all";
  /**
   * An expert's parts are each made up with zeros to a multiple of so many rows and columns, as the engine's kernels want it;
   * absent: they stay as they are.
   */
  readonly expertsPadTo?: number;
  /** Shape of the F32 scales of a weight [rows, cols]; of experts' weights it is that of one expert. */
  readonly scaleShape: (rows: number, cols: number, isExpert: boolean) => number[];
}

export const SCALE_BLOCK = 128;

export const SCHEMES = {
  none: { code: 0, scaleSuffix: null, rowsTogether: 1, scaleShape: () => [] },
  "fp8-tensor": {
    code: 1,
    scaleSuffix: "_scale",
    rowsTogether: "all",
    scaleShape: (_rows, _cols, isExpert) => (isExpert ? [] : [1]),
  },
  "fp8-channel": { code: 2, scaleSuffix: "_scale", rowsTogether: 1, scaleShape: (rows) => [rows, 1] },
  "fp8-block": {
    code: 3,
    rowsTogether: SCALE_BLOCK,
    expertsPadTo: SCALE_BLOCK,
    scaleSuffix: "_scale_inv",
    scaleShape: (rows, cols) => [Math.ceil(rows / SCALE_BLOCK), Math.ceil(cols / SCALE_BLOCK)],
  },
} as const satisfies Record<string, SchemeRow>;

export type Scheme = keyof typeof SCHEMES;
export const SCHEME_NAMES = Object.keys(SCHEMES) as Scheme[];

/** What an expert's parts are made up to under the scheme. */
export function expertsPadTo(scheme: Scheme): number {
  const row: SchemeRow = SCHEMES[scheme];
  return row.expertsPadTo ?? 1;
}

/** What a request may name: a scheme, or that codes and scales of a checkpoint quantized already stay what they are. */
export const RECIPES = [...SCHEME_NAMES, "as-stored"] as const;
export type Recipe = (typeof RECIPES)[number];
