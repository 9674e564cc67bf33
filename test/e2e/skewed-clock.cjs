// Preloaded into a cluster's processes: an hour is added to the clock of the one whose arguments hold SKEWED_ARGUMENTS.

const HOUR_MS = 3_600_000;
const wanted = (process.env.SKEWED_ARGUMENTS ?? "").split(" ");
const at = process.argv.findIndex((_, index) => wanted.every((word, offset) => process.argv[index + offset] === word));

if (at !== -1) {
  const Real = Date;
  globalThis.Date = class extends Real {
    constructor(...given) {
      if (given.length === 0) super(Real.now() + HOUR_MS);
      else super(...given);
    }
    static now() {
      return Real.now() + HOUR_MS;
    }
  };
}
