// How long a body may stand still, by a clock of the test's own.

import { EventEmitter } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { watchBody } from "../../orchestrator/routes/body-progress.js";

const PACE = { bytes: 1000, withinMs: 30_000 };

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** A request whose bytes come as told; `endedAt` is when it was given up. */
function watched() {
  const state = { endedAt: null as number | null };
  const began = Date.now();
  const socket = Object.assign(new EventEmitter(), {
    bytesRead: 200,
    destroy: () => {
      state.endedAt = Date.now() - began;
    },
  });
  const fields = { socket, headers: { "content-length": "1000000" }, readableLength: 0, complete: false };
  const request = Object.assign(new EventEmitter(), fields);
  const response = Object.assign(new EventEmitter(), { headersSent: true });
  watchBody(request as unknown as IncomingMessage, response as unknown as ServerResponse, PACE);
  return { request, socket, state };
}

describe("a body that stands still is given up after one window", () => {
  it.each([0, 100, 2_999, 3_000, 14_500, 29_999])("whatever came in its first %i ms", (ms) => {
    const { socket, state } = watched();
    vi.advanceTimersByTime(ms);
    socket.bytesRead += ms === 0 ? 0 : 5 * PACE.bytes;
    vi.advanceTimersByTime(10 * PACE.withinMs);
    expect(state.endedAt).toBeGreaterThanOrEqual(PACE.withinMs);
    expect(state.endedAt).toBeLessThanOrEqual(ms + 1.1 * PACE.withinMs);
  });

  it("though a byte comes now and then", () => {
    const { socket, state } = watched();
    for (let second = 0; second < 60; second++) {
      socket.bytesRead += 10;
      vi.advanceTimersByTime(1_000);
    }
    expect(state.endedAt).toBe(PACE.withinMs);
  });

  it("that begins when the reader has taken what had come", () => {
    const { request, state } = watched();
    request.readableLength = 5;
    vi.advanceTimersByTime(5 * PACE.withinMs);
    expect(state.endedAt).toBeNull();
    request.readableLength = 0;
    vi.advanceTimersByTime(2 * PACE.withinMs);
    expect(state.endedAt).toBe(6 * PACE.withinMs);
  });
});

it("a body that brings enough in every window is never given up, nor one that has come whole", () => {
  const { request, socket, state } = watched();
  for (let window = 0; window < 20; window++) {
    vi.advanceTimersByTime(PACE.withinMs - 3_000);
    socket.bytesRead += PACE.bytes;
  }
  request.complete = true;
  vi.advanceTimersByTime(5 * PACE.withinMs);
  expect(state.endedAt).toBeNull();
});
