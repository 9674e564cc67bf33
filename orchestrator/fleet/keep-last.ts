/** The `count` values that were set last, by key: for what never changes and is asked for again and again. */
export function keepLast<Value>(count: number) {
  const kept = new Map<string, Value>();
  return {
    get: (key: string) => kept.get(key),
    set(key: string, value: Value): Value {
      const oldest = kept.size >= count ? kept.keys().next().value : undefined;
      if (oldest !== undefined) kept.delete(oldest);
      kept.set(key, value);
      return value;
    },
  };
}
