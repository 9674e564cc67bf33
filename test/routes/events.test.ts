import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { ReloadEvent } from "../../orchestrator/reloads/reloads.js";
import type { App } from "../../orchestrator/routes/app.js";
import { committedView, eventsOf, rankProgress, signalled, type TestServer, testServer } from "./fake-reloads.js";

const EVENTS: ReloadEvent[] = [
  { id: "100-0", name: "state", payload: { state: "loading", epoch: 1, error: null } },
  { id: "100-1", name: "progress", payload: rankProgress(0) },
  { id: "101-0", name: "state", payload: { state: "committed", epoch: 1, error: null } },
];
const eventsAfter = (id: string | null) => EVENTS.slice(EVENTS.findIndex((event) => event.id === id) + 1);
const PATH = "/v1/reloads/rl-1/events";

let app: App;
let url: string;
let behave: TestServer["behave"];
beforeAll(async () => {
  ({ app, behave } = await testServer({}, { heartbeatMs: 5 }));
  url = await app.listen({ port: 0, host: "127.0.0.1" });
});
afterAll(() => app.close());
const read = (lastEventId?: string) =>
  app.inject({ url: PATH, headers: lastEventId === undefined ? {} : { "last-event-id": lastEventId } });
const framesOf = (text: string) => text.split("\n\n").filter((frame) => frame.startsWith("id: "));

describe("the event stream", () => {
  it("carries id, event and data of each event and ends after the last", async () => {
    behave({ events: () => eventsOf(EVENTS) });
    const answer = await read();
    expect(answer.statusCode).toBe(200);
    expect(answer.headers["content-type"]).toMatch(/^text\/event-stream/);
    expect(answer.headers["cache-control"]).toContain("no-cache");
    expect(answer.body.startsWith("retry: ")).toBe(true);
    expect(framesOf(answer.body)).toEqual(
      EVENTS.map(({ id, name, payload }) => `id: ${id}\nevent: ${name}\ndata: ${JSON.stringify(payload)}`),
    );
  });

  it("goes on after Last-Event-ID", async () => {
    const asked: (string | null)[] = [];
    behave({
      events: (_id, afterId) => {
        asked.push(afterId);
        return eventsOf(eventsAfter(afterId));
      },
    });
    expect(framesOf((await read("100-1")).body)).toHaveLength(1);
    expect(framesOf((await read()).body)).toHaveLength(3);
    expect(framesOf((await read("")).body)).toHaveLength(3);
    expect(asked).toEqual(["100-1", null, null]);
  });

  it.each(["abc", "100", "100-", "-0", "100-0; DROP", "99999999999999999999-0"])(
    "refuses Last-Event-ID %s",
    async (id) => {
      behave({});
      const answer = await read(id);
      expect(answer.json()).toMatchObject({ status: 400, details: { errors: [{ path: "last-event-id" }] } });
    },
  );

  it("is 204 for an ended reload with nothing left to replay, so that browsers do not come back", async () => {
    behave({ get: async () => committedView(), events: (_id, afterId) => eventsOf(eventsAfter(afterId)) });
    expect((await read("101-0")).statusCode).toBe(204);
    expect((await read("100-0")).statusCode).toBe(200);
  });

  it("of an unknown reload is 404, not an empty stream", async () => {
    behave({
      get: async () => {
        throw new LayercastError("not_found", "no reload rl-1");
      },
    });
    expect((await read()).json()).toMatchObject({ status: 404, code: "not_found" });
  });

  it.each([
    [new LayercastError("redis_unavailable", "gone"), "redis_unavailable"],
    [new Error("Connection is closed."), "redis_unavailable"],
    [new Error("inner state"), "internal"],
  ])("that breaks (%s) says why as an event without id, then ends", async (error, code) => {
    behave({
      events: async function* () {
        yield* EVENTS.slice(0, 1);
        throw error;
      },
    });
    const { body } = await read();
    expect(body).toMatch(new RegExp(`event: problem\\ndata: {"code":"${code}"`));
    expect(body).not.toContain("inner state");
    expect(framesOf(body)).toHaveLength(1);
  });

  it("sends heartbeats while nothing happens", async () => {
    const released = signalled();
    behave({
      events: async function* () {
        await released.promise;
        yield* EVENTS.slice(2);
      },
    });
    const response = await fetch(url + PATH);
    let text = "";
    for await (const chunk of response.body ?? []) {
      text += Buffer.from(chunk).toString();
      if (text.split(": heartbeat\n\n").length > 2) released.resolve();
    }
    expect(framesOf(text.replaceAll(": heartbeat\n\n", "").replace(/^retry.*\n\n/, ""))).toHaveLength(1);
  });
});

describe("an event stream with nothing to send", () => {
  /** Never yields and never looks at the signal. */
  const silent = async function* (): AsyncGenerator<ReloadEvent> {
    yield EVENTS[0] as ReloadEvent;
    await new Promise(() => {});
  };

  it("ends when the server closes, also with a connection open that never asked anything", async () => {
    const { app: closing } = await testServer({ events: silent });
    const closingUrl = await closing.listen({ port: 0, host: "127.0.0.1" });
    const idle = await connectTo(closingUrl);
    const response = await fetch(closingUrl + PATH);
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    expect((await reader.read()).done).toBe(false);
    await closing.close();
    while (!(await reader.read()).done);
    idle.destroy();
  });

  it("aborts the iterator when the client goes", async () => {
    const aborted = signalled();
    behave({
      events: (_id, _afterId, signal) => {
        signal.addEventListener("abort", () => aborted.resolve());
        return silent();
      },
    });
    const client = new AbortController();
    const response = await fetch(url + PATH, { signal: client.signal });
    expect(response.status).toBe(200);
    client.abort();
    await aborted.promise;
  });
});

async function connectTo(url: string) {
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  await new Promise((resolve) => socket.once("connect", resolve));
  socket.on("error", () => undefined);
  return socket;
}
