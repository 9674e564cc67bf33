import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { knownSources } from "../../orchestrator/reloads/sources/known-sources.js";

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

it("the first answer is that of a look that ends in time", async () => {
  expect(await knownSources(async () => true)("c1")).toBe(true);
  expect(await knownSources(async () => false)("c1")).toBe(false);
});

it("a look that does not end holds up one answer for a second, and no other", async () => {
  let looks = 0;
  const isUsable = knownSources(() => {
    looks += 1;
    return new Promise(() => {});
  });
  const first = isUsable("c1");
  await vi.advanceTimersByTimeAsync(1_000);
  expect(await first).toBe(false);
  for (let minute = 0; minute < 3; minute++) {
    await vi.advanceTimersByTimeAsync(60_000);
    expect(await isUsable("c1")).toBe(false);
  }
  expect(looks).toBe(1);
});

it("what was found is answered at once, and looked at again beside", async () => {
  let isThere = true;
  const isUsable = knownSources(async () => isThere);
  expect(await isUsable("c1")).toBe(true);
  isThere = false;
  await vi.advanceTimersByTimeAsync(10_000);
  expect(await isUsable("c1")).toBe(true);
  await vi.advanceTimersByTimeAsync(0);
  expect(await isUsable("c1")).toBe(false);
});

it("a look that cannot be made leaves what was known", async () => {
  let look = async () => true;
  const isUsable = knownSources(() => look());
  await isUsable("c1");
  look = () => Promise.reject(new Error("Redis is away"));
  for (let again = 0; again < 3; again++) {
    await vi.advanceTimersByTimeAsync(10_000);
    expect(await isUsable("c1")).toBe(true);
  }
});
