// The engines' socket with real clients: whatever one sends, only its own connection ends.

import { mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { LinkId } from "../../../worker/engines/leases.js";
import { connectModeOf, type LinkServer, openLinkServer, SOCKET_NAME } from "../../../worker/engines/link-server.js";
import { type EngineMessage, MAX_LINE_BYTES } from "../../../worker/engines/messages.js";

const HELLO = {
  ...{ hello: 1, engine: "e-0", role: "rank", name: "vllm", version: "0.26.0", pid: 1, host: "h", url: null },
  ...{ world: 1, rank: 0, data_parallel_rank: 0, state: "starting" },
};

let directory: string;
let server: LinkServer;
let heard: { link: LinkId; message: EngineMessage }[];
let ended: LinkId[];
let warnings: string[];
const clients: Socket[] = [];

async function open(path = directory, silentMs?: number): Promise<void> {
  heard = [];
  ended = [];
  warnings = [];
  server = await openLinkServer({
    directory: path,
    fileMode: 0o640,
    log: { warn: ((_: object, text: string) => void warnings.push(text)) as never },
    onMessage: (link, message) => void heard.push({ link, message }),
    onEnd: (link) => void ended.push(link),
    ...(silentMs !== undefined && { silentMs }),
  });
}

function call(path = join(directory, SOCKET_NAME)): Socket & { lines: string[]; isClosed: boolean } {
  const socket = Object.assign(connect(path), { lines: [] as string[], isClosed: false });
  clients.push(socket);
  socket.on("data", (chunk: Buffer) => socket.lines.push(...chunk.toString().trim().split("\n")));
  socket.on("close", () => {
    socket.isClosed = true;
  });
  socket.on("error", () => {});
  return socket;
}

const greeting = (more = {}) => `${JSON.stringify({ ...HELLO, ...more })}\n`;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "layercast-links-"));
  await open();
});
afterEach(() => {
  for (const client of clients.splice(0)) client.destroy();
  server.close();
  rmSync(directory, { recursive: true });
});

describe("the socket", () => {
  it("may be connected to by who may read the weights", () => {
    expect(statSync(join(directory, SOCKET_NAME)).mode & 0o777).toBe(0o660);
    expect([0o600, 0o640, 0o644, 0o660].map(connectModeOf)).toEqual([0o600, 0o660, 0o666, 0o660]);
  });

  it("takes the place of one that a dead worker has left, and lies in directories of any length", async () => {
    const long = join(directory, "d".repeat(200));
    mkdirSync(long);
    writeFileSync(join(long, SOCKET_NAME), "");
    server.close();
    await open(long);
    expect(statSync(join(long, SOCKET_NAME)).isSocket()).toBe(true);
  });
});

describe("an engine", () => {
  it("is heard, line by line, and answered; its end is heard once", async () => {
    const client = call();
    client.write(greeting().slice(0, 20));
    client.write(`${greeting().slice(20)}{"later": 1}\n{"stopped": 3}\n`);
    await vi.waitFor(() => expect(heard.map(({ message }) => message.kind)).toEqual(["hello", "unknown", "stopped"]));
    const [first] = heard;
    server.send(first?.link ?? 0, { stop: 3, reload: "r3" });
    server.send(first?.link ?? 0, { go: 3 });
    await vi.waitFor(() => expect(client.lines).toEqual(['{"stop":3,"reload":"r3"}', '{"go":3}']));
    client.destroy();
    await vi.waitFor(() => expect(ended).toEqual([first?.link]));
    server.send(first?.link ?? 0, { go: 4 });
  });

  it("that is refused is told why, and closed", async () => {
    const client = call();
    client.write(greeting());
    await vi.waitFor(() => expect(heard).toHaveLength(1));
    server.end(heard[0]?.link ?? 0, { refused: "invalid_request", message: "No." });
    await vi.waitFor(() => expect(client.isClosed).toBe(true));
    expect(client.lines).toEqual(['{"refused":"invalid_request","message":"No."}']);
    await vi.waitFor(() => expect(ended).toHaveLength(1));
  });
});

describe("a client that", () => {
  it.each([
    ["sends what is no JSON", "hello\n", "no message"],
    ["sends what is no hello first", '{"stopped": 1}\n', "has not said hello first"],
    ["sends a hello of another form", greeting({ pid: "one" }), "no message"],
    ["says hello twice", greeting() + greeting(), "hello twice"],
    ["sends a line that does not end", "x".repeat(MAX_LINE_BYTES + 1), "a line of more than 65536 bytes"],
  ])("%s is closed with a word in the log; another engine is not", async (_, bytes, words) => {
    const good = call();
    good.write(greeting());
    await vi.waitFor(() => expect(heard).toHaveLength(1));
    const bad = call();
    bad.write(bytes);
    await vi.waitFor(() => expect(bad.isClosed).toBe(true));
    expect(warnings.join()).toContain(words);
    good.write('{"stopped": 9}\n');
    await vi.waitFor(() => expect(heard.at(-1)?.message).toEqual({ kind: "stopped", epoch: 9 }));
    expect(good.isClosed).toBe(false);
  });

  it("ends in the middle of a line is over, and no part of the line is heard", async () => {
    const client = call();
    client.write(`${greeting()}{"stopped": 1`);
    await vi.waitFor(() => expect(heard).toHaveLength(1));
    client.end();
    await vi.waitFor(() => expect(ended).toHaveLength(1));
    expect(heard).toHaveLength(1);
  });

  it("says nothing is closed; one that has said hello may be silent for ever", async () => {
    server.close();
    await open(directory, 20);
    const known = call();
    known.write(greeting());
    await vi.waitFor(() => expect(heard).toHaveLength(1));
    const silent = call();
    await vi.waitFor(() => expect(silent.isClosed).toBe(true));
    expect(warnings.join()).toContain("has not said hello");
    expect(known.isClosed).toBe(false);
  });
});
