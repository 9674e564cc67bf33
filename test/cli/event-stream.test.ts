import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { parseEventStream, type StreamEvent } from "../../orchestrator/cli/event-stream.js";

async function parse(chunks: Uint8Array[]): Promise<StreamEvent[]> {
  const events: StreamEvent[] = [];
  for await (const event of parseEventStream(streamOf(chunks))) events.push(event);
  return events;
}

async function* streamOf(chunks: Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* chunks;
}

const TEXT = [
  ": here\n\n",
  'id: 1-0\nevent: state\ndata: {"state":"planning"}\n\n',
  'id: 2-0\r\nevent: warning\r\ndata: {"message":\r\ndata: "größer 𝕏"}\r\n\r\n',
  "retry: 1000\nid: 3-0\n\n",
  'event: progress\ndata:{"rank":1}\n\n',
].join("");

const EVENTS: StreamEvent[] = [
  { id: "1-0", name: "state", payload: { state: "planning" } },
  { id: "2-0", name: "warning", payload: { message: "größer 𝕏" } },
  { id: "3-0", name: "progress", payload: { rank: 1 } },
];

describe("an event stream", () => {
  it("gives the same events wherever the network cuts it", async () => {
    const bytes = new TextEncoder().encode(TEXT);
    const cuts = fc.array(fc.integer({ min: 0, max: bytes.length }), { maxLength: 20 });
    await fc.assert(
      fc.asyncProperty(cuts, async (unsorted) => {
        const sorted = [0, ...unsorted.sort((a, b) => a - b), bytes.length];
        const chunks = sorted.slice(1).map((end, at) => bytes.subarray(sorted[at] ?? 0, end));
        expect(await parse(chunks)).toEqual(EVENTS);
      }),
    );
  });

  it("drops an event that was cut off before its end", async () => {
    expect(await parse([new TextEncoder().encode('id: 1-0\nevent: state\ndata: {"state":"pla')])).toEqual([]);
  });
});
