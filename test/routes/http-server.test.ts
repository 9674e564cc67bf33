// The server below the routes, spoken to over TCP by clients that break the rules.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { type AddressInfo, connect, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { bucketView, type TestServer, testServer } from "./fake-reloads.js";

const PACE = { bytes: 64, withinMs: 150 };

let server: TestServer;
let port: number;
beforeAll(async () => {
  server = await testServer({}, { bodyPace: PACE });
  await server.app.listen({ port: 0, host: "127.0.0.1" });
  port = (server.app.server.address() as AddressInfo).port;
});
afterAll(() => server.app.close());

/** All that comes until the server closes the connection; `go` sends more meanwhile. */
async function exchange(text: string, go: (socket: Socket) => Promise<void> = async () => {}) {
  const socket = connect(port, "127.0.0.1");
  let answer = "";
  socket.setEncoding("utf8").on("data", (chunk: string) => {
    answer += chunk;
  });
  socket.on("error", () => {});
  // Not by once(), which rejects where the server closes under a write: what was answered before counts.
  const closed = new Promise((resolve) => socket.once("close", resolve));
  socket.write(text);
  await go(socket);
  await closed;
  const [head = "", body = ""] = answer.split("\r\n\r\n");
  return { status: Number(head.split(" ")[1]), head, body };
}

function expectProblem({ status, head, body }: Awaited<ReturnType<typeof exchange>>, expected: object): void {
  expect(head.toLowerCase()).toContain("content-type: application/problem+json");
  expect(JSON.parse(body)).toMatchObject({ status, title: expect.any(String), ...expected });
}

describe("what is not a request is answered with a problem document, and the connection ends:", () => {
  it.each([
    ["garbage", "garbage\r\n\r\n", 400],
    ["an unknown method", "BREW / HTTP/1.1\r\nhost: localhost\r\n\r\n", 400],
    ["two lengths", "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400],
    [
      "a length and chunks",
      "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
      400,
    ],
    ["headers without an end", `GET / HTTP/1.1\r\nhost: localhost\r\nx: ${"x".repeat(20_000)}`, 431],
    ["CONNECT", "CONNECT localhost:1 HTTP/1.1\r\nhost: localhost\r\n\r\n", 400],
  ])("%s", async (_what, text, status) => {
    const answer = await exchange(text);
    expect(answer.status).toBe(status);
    expectProblem(answer, { code: "invalid_request", instance: "/" });
    expect(answer.head.toLowerCase()).toContain("connection: close");
  });
});

describe("a request is refused with a problem document", () => {
  const closing = "connection: close\r\n\r\n";

  it.each([
    ["without a Host", "", /no Host header/],
    ["with two Hosts", "host: localhost\r\nhost: localhost\r\n", /2 Host headers/],
  ])("%s", async (_how, hosts, detail) => {
    const answer = await exchange(`GET /livez?x=1 HTTP/1.1\r\n${hosts}${closing}`);
    expect(answer.status).toBe(400);
    expectProblem(answer, { code: "invalid_request", instance: "/livez", detail: expect.stringMatching(detail) });
  });

  it("that expects what nobody knows", async () => {
    const answer = await exchange(`GET /livez HTTP/1.1\r\nhost: localhost\r\nexpect: tea\r\n${closing}`);
    expect(answer.status).toBe(417);
    expectProblem(answer, { code: "invalid_request", detail: expect.stringContaining('"tea"') });
  });

  it("but not of HTTP/1.0, which has no Host", async () => {
    expect((await exchange("GET /livez HTTP/1.0\r\n\r\n")).status).toBe(200);
  });
});

describe("a body", () => {
  const head = (method: string, path: string, type: string, bytes: number) =>
    `${method} ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: ${type}\r\ncontent-length: ${bytes}\r\n\r\n`;
  const drip = async (socket: Socket) => {
    while (!socket.destroyed) {
      socket.write("x");
      await delay(20);
    }
  };
  const takesBodies = async (_id: string, bucket: number, body: AsyncIterable<unknown>) => {
    for await (const _ of body);
    return bucketView({ bucket });
  };

  it.each([
    ["of JSON that stalls", head("POST", "/v1/plans", "application/json", 1000), async () => {}],
    ["of JSON that drips", head("POST", "/v1/plans", "application/json", 1000), drip],
    [
      "of a bucket that stalls",
      head("PUT", "/v1/reloads/r/buckets/0", "application/octet-stream", 1000),
      async () => {},
    ],
    ["of a bucket that drips", head("PUT", "/v1/reloads/r/buckets/0", "application/octet-stream", 1000), drip],
  ])("%s is answered with request_timeout, and its connection ends", async (_what, text, go) => {
    server.behave({ putBucket: takesBodies });
    const answer = await exchange(text, go);
    expect(answer.status).toBe(408);
    expectProblem(answer, { code: "request_timeout", retryable: true });
  });

  it("that nobody reads ends too, when it stalls after the answer", async () => {
    const answer = await exchange(head("GET", "/livez", "application/json", 1000));
    expect([200, 408]).toContain(answer.status);
  });

  it("that makes progress is taken, however long it is", async () => {
    server.behave({ putBucket: takesBodies });
    const parts = 8;
    const sending = exchange(
      head("PUT", "/v1/reloads/r/buckets/0", "application/octet-stream", parts * PACE.bytes).replace(
        "host:",
        "connection: close\r\nhost:",
      ),
      async (socket) => {
        for (let part = 0; part < parts; part++) {
          await delay(PACE.withinMs / 3);
          socket.write("x".repeat(PACE.bytes));
        }
      },
    );
    expect((await sending).status).toBe(202);
  });

  it("that waits for its reader is not the client's fault", async () => {
    server.behave({
      putBucket: async (id, bucket, body) => {
        await delay(4 * PACE.withinMs);
        return takesBodies(id, bucket, body);
      },
    });
    const text = head("PUT", "/v1/reloads/r/buckets/0", "application/octet-stream", 1000).replace(
      "host:",
      "connection: close\r\nhost:",
    );
    expect(
      (
        await exchange(text + "x".repeat(500), async (socket) => {
          await delay(4.5 * PACE.withinMs);
          socket.write("x".repeat(500));
        })
      ).status,
    ).toBe(202);
  });

  it.each([
    ["a bucket", head("PUT", "/v1/reloads/r/buckets/0", "application/octet-stream", 1000)],
    ["JSON", head("POST", "/v1/plans", "application/json", 1000)],
  ])(
    "of %s whose client hangs up is the client's doing: a line of the log at most, and nothing of Redis or files",
    async (_what, text) => {
      server.behave({ putBucket: takesBodies });
      const before = server.logged.length;
      await exchange(`${text}some`, async (socket) => {
        await delay(20);
        socket.resetAndDestroy();
      });
      const lines = () => server.logged.slice(before).filter(({ code }) => code !== undefined);
      await expect.poll(lines).toHaveLength(1);
      expect(lines()).toEqual([expect.objectContaining({ level: 30, code: "request_aborted", status: 400 })]);
    },
  );

  it("that still comes after the answer does not keep its connection", async () => {
    server.behave({
      putBucket: async (_id, bucket, body) => {
        await body[Symbol.asyncIterator]().next();
        return bucketView({ bucket });
      },
    });
    const text = head("PUT", "/v1/reloads/r/buckets/0", "application/octet-stream", 1e9);
    expect((await exchange(text + "x".repeat(1000))).status).toBe(202);
  });
});

it("a connection whose other host is gone is found by TCP keepalive", async () => {
  const socket = connect(port, "127.0.0.1");
  await once(socket, "connect");
  const end = (number: number) => `0100007F:${number.toString(16).toUpperCase().padStart(4, "0")}`;
  const timerOf = () =>
    readFileSync("/proc/net/tcp", "utf8")
      .split("\n")
      .map((line) => line.trim().split(/\s+/))
      .find(([, local, remote]) => local === end(port) && remote === end(socket.localPort ?? 0))?.[5];
  await expect.poll(timerOf).toMatch(/^02:/); // the keepalive timer runs
  socket.destroy();
});
