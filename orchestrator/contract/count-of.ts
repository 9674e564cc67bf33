/** "1 layer", "2 layers", "0 matrices". `plural`: of a noun that does not take an s alone. */
export function countOf(count: number | bigint, noun: string, plural = `${noun}s`): string {
  return `${count} ${Number(count) === 1 ? noun : plural}`;
}
