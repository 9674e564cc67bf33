// Hook calls against a small HTTP server that answers as each test says.

import dns from "node:dns";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import { callEngines, type EngineCall } from "../../orchestrator/reloads/call-engines.js";

interface Asked {
  method: string;
  path: string;
  headers: IncomingMessage["headers"];
  body: string;
}

let server: Server;
let base: string;
let asked: Asked[];
let answer: (asked: Asked, response: ServerResponse) => void;

beforeEach(async () => {
  asked = [];
  answer = (_, response) => response.end();
  server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => {
      body += chunk;
    });
    request.on("end", () => {
      const { method = "", url = "", headers } = request;
      const one = { method, path: url, headers, body };
      asked.push(one);
      answer(one, response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterEach(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

function call(paths: string[], more: Partial<EngineCall> = {}): Promise<number> {
  const urls = paths.map((path) => base + path);
  const request = { urls, method: "POST", body: null };
  return callEngines({ what: "pause", request, urls, reload: "rl-1", epoch: 7, timeoutMs: 5_000, ...more });
}

async function failureOf(calling: Promise<number>): Promise<LayercastError> {
  const error = await calling.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof LayercastError)) throw new Error(`expected a LayercastError, got ${String(error)}`);
  expect(error.code).toBe("hook_failed");
  return error;
}

const answering =
  (status: number, words = ""): typeof answer =>
  (_, response) =>
    response.writeHead(status).end(words);

describe("a call", () => {
  it("says for which reload and epoch it is, and carries body and content type as they are", async () => {
    const body = { mode: "keep", nested: [1, null, "ü"] };
    const request = { urls: [], method: "PUT", body };
    await call(["/pause?x=1"], { request });
    expect(asked).toHaveLength(1);
    expect(asked[0]).toMatchObject({ method: "PUT", path: "/pause?x=1", body: JSON.stringify(body) });
    expect(asked[0]?.headers).toMatchObject({
      "layercast-reload": "rl-1",
      "layercast-epoch": "7",
      "content-type": "application/json",
    });
  });

  it("without a body names no content type", async () => {
    await call(["/pause"]);
    expect([asked[0]?.body, asked[0]?.headers["content-type"]]).toEqual(["", undefined]);
  });

  it("goes to every url at once", async () => {
    const held: ServerResponse[] = [];
    answer = (_, response) => {
      held.push(response);
      if (held.length === 3) for (const one of held) one.end();
    };
    await call(["/a", "/b", "/c"]);
    expect(asked.map(({ path }) => path).sort()).toEqual(["/a", "/b", "/c"]);
  });

  it("tells how long ago the first engine answered", async () => {
    const held: ServerResponse[] = [];
    let firstAt = 0;
    answer = ({ path }, response) => {
      if (path === "/slow") held.push(response);
      else response.end();
      if (held.length === 0 || asked.length < 2) return;
      firstAt = performance.now();
      setTimeout(() => held[0]?.end(), 60);
    };
    const agoMs = await call(["/slow", "/fast"]);
    expect(agoMs).toBeGreaterThan(30);
    expect(agoMs).toBeLessThan(performance.now() - firstAt + 60);
  });

  it("to nobody is over at once", async () => {
    expect(await call([])).toBe(0);
  });
});

describe("an engine", () => {
  it.each([200, 202, 204])("that answers %i has done it", async (status) => {
    answer = answering(status);
    expect(await call(["/pause"])).toBeGreaterThanOrEqual(0);
  });

  it("has answered even if it breaks off the body after that", async () => {
    answer = (_, response) => {
      response.writeHead(200, { "content-length": "100" });
      response.write("half", () => response.destroy());
    };
    expect(await call(["/pause"])).toBeGreaterThanOrEqual(0);
    expect(asked).toHaveLength(1);
  });

  it("that answers an error fails the call, in its own words up to a limit, and is not asked again", async () => {
    answer = answering(500, `busy compiling ${"x".repeat(1_000)}`);
    const error = await failureOf(call(["/pause"]));
    expect(error.message).toMatch(/^the pause hook http:\/\/127\.0\.0\.1:\d+\/pause answered 500: busy compiling x+;/);
    expect(error.message.length).toBeLessThan(400);
    expect(error.details).toMatchObject({ hook: "pause", url: `${base}/pause`, status: 500 });
    expect(asked).toHaveLength(1);
  });

  it("that does not answer in time fails the call with the limit", async () => {
    answer = () => undefined;
    const error = await failureOf(call(["/pause"], { timeoutMs: 50 }));
    expect(error.message).toContain("did not answer within 50 ms");
    expect(error.details).toMatchObject({ timeout_ms: 50 });
    expect(asked).toHaveLength(1);
  });

  it("that is not there fails the call with the reason, one with several addresses too", async () => {
    const addresses = ["127.0.0.1", "127.0.0.2"].map((address) => ({ address, family: 4 }));
    const lookup = vi
      .spyOn(dns, "lookup")
      .mockImplementation(((_host: string, _options: unknown, done: unknown) =>
        (done as (error: null, found: object) => void)(null, addresses)) as typeof dns.lookup);
    const { port } = server.address() as AddressInfo;
    await new Promise((resolve) => server.close(resolve));
    for (const host of ["127.0.0.1", "engine.test"]) {
      const error = await failureOf(call([], { urls: [`http://${host}:${port}/pause`] }));
      expect(error.message).toMatch(/could not be reached \(.*ECONNREFUSED.*\)/);
    }
    lookup.mockRestore();
    server.listen(0, "127.0.0.1");
  });

  it("that closes the connection without an answer is asked once more", async () => {
    answer = (_, response) => void (asked.length === 2 ? response.destroy() : response.end());
    await call(["/pause"]);
    await call(["/pause"]);
    expect(asked).toHaveLength(3);
  });

  it("that closes it each time fails the call", async () => {
    answer = (_, response) => void response.destroy();
    const error = await failureOf(call(["/pause"]));
    expect(error.message).toContain("could not be reached");
    expect(asked).toHaveLength(2);
  });

  it("that sends elsewhere is not followed", async () => {
    answer = ({ path }, response) =>
      void (path === "/pause" ? response.writeHead(307, { location: "/other" }).end() : response.end());
    await failureOf(call(["/pause"]));
    expect(asked.map(({ path }) => path)).not.toContain("/other");
  });

  it("that fails is reported only once the others have answered: nothing is under way any more then", async () => {
    const held = new Map<string, ServerResponse>();
    const refused = new Promise<void>((resolve) => {
      answer = ({ path }, response) => {
        held.set(path, response);
        if (held.size === 2) held.get("/bad")?.writeHead(503).end("no", resolve);
      };
    });
    let over = false;
    const failing = failureOf(call(["/slow", "/bad"])).finally(() => {
      over = true;
    });
    await refused;
    answer = (_, response) => void response.end();
    await fetch(base).then((response) => response.text());
    expect(over).toBe(false);
    held.get("/slow")?.end();
    expect((await failing).message).toContain("answered 503: no");
  });
});

describe("the time limit", () => {
  /** Chunks again and again; resolves with the bytes sent, once the caller has closed the connection. */
  function endless(response: ServerResponse, chunk: Buffer, everyMs: number): Promise<number> {
    let sent = 0;
    response.writeHead(500, { "content-type": "text/plain" });
    const send = () => {
      sent += chunk.byteLength;
      response.write(chunk);
    };
    send();
    const timer = setInterval(send, everyMs);
    return new Promise((resolve) =>
      response.once("close", () => {
        clearInterval(timer);
        resolve(sent);
      }),
    );
  }

  it("holds while an error's body drips and the garbage collector runs, and ends the connection", async () => {
    setFlagsFromString("--expose-gc");
    const gc = runInNewContext("gc") as () => void;
    const collecting = setInterval(gc, 60);
    let closed: Promise<number> | null = null;
    answer = (_, response) => {
      closed = endless(response, Buffer.from("x"), 20);
    };
    const error = await failureOf(call(["/pause"], { timeoutMs: 800 })).finally(() => clearInterval(collecting));
    expect(error.message).toMatch(/answered 500: x+;/);
    expect(await closed).toBeGreaterThan(0);
  });

  it("holds for an engine that sends the head of its answer and no more", async () => {
    answer = (_, response) => void response.writeHead(500).flushHeaders();
    expect((await failureOf(call(["/pause"], { timeoutMs: 50 }))).message).toContain("answered 500;");
  });

  it("is not waited for once enough of an error's body has come: no more of it is taken", async () => {
    let closed: Promise<number> | null = null;
    answer = (_, response) => {
      closed = endless(response, Buffer.alloc(1 << 16, 120), 0);
    };
    const error = await failureOf(call(["/pause"], { timeoutMs: 300_000 }));
    expect(error.message.length).toBeLessThan(400);
    expect(await closed).toBeLessThan(64 << 20);
  });
});

it("no compression is asked for, and none decoded", async () => {
  answer = (_, response) => response.writeHead(500, { "content-encoding": "gzip" }).end(gzipSync("x".repeat(1 << 20)));
  expect((await failureOf(call(["/pause"]))).message).toContain("answered 500;");
  expect(asked[0]?.headers["accept-encoding"]).toBe("identity");
});

it("an address that a name leads to is judged when it is connected to", async () => {
  const lookup = vi
    .spyOn(dns, "lookup")
    .mockImplementation(((_host: string, _options: unknown, done: unknown) =>
      (done as (error: null, found: object) => void)(null, [
        { address: "169.254.169.254", family: 4 },
      ])) as typeof dns.lookup);
  const error = await failureOf(call([], { urls: ["http://engine.test/pause"] }));
  expect(error.message).toContain("169.254.169.254 is a link-local or cloud metadata address");
  lookup.mockRestore();
});

it("a resume that fails says that it is tried again", async () => {
  answer = answering(500);
  const error = await failureOf(call(["/resume"], { what: "resume" }));
  expect(error.message).toMatch(/the resume hook .* answered 500; it is tried again until it works/);
});
