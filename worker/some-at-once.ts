// Work on a list, some of it at a time.

/**
 * Runs for each item, in order, `width` at once; begins no more once one has failed. Settles when none is at work: with the first
 * failure, if there was one.
 */
export async function someAtOnce<Item>(
  items: Iterable<Item>,
  width: number,
  run: (item: Item) => Promise<void>,
): Promise<void> {
  const queue = items[Symbol.iterator]();
  const failures: unknown[] = [];
  const runSome = async () => {
    for (let next = queue.next(); !next.done && failures.length === 0; next = queue.next()) {
      await run(next.value).catch((error: unknown) => void failures.push(error));
    }
  };
  await Promise.all(Array.from({ length: width }, runSome));
  if (failures.length > 0) throw failures[0];
}
