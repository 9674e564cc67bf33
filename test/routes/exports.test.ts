// An export's bytes over HTTP: whole, by range, and refused.

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { App } from "../../orchestrator/routes/app.js";
import { parseRange } from "../../orchestrator/routes/exports.js";
import { EXPORT_ID, type TestServer, testServer } from "./fake-reloads.js";

const URL = `/v1/fleets/f/exports/${EXPORT_ID}`;

let app: App;
let behave: TestServer["behave"];
beforeAll(async () => {
  ({ app, behave } = await testServer());
});
afterAll(() => app.close());
const read = (headers: Record<string, string> = {}) => app.inject({ method: "GET", url: URL, headers });

describe("an export", () => {
  it("is sent whole, with its length and a name by which a range is still the same file's", async () => {
    behave({});
    const { statusCode, headers, body } = await read();
    expect([statusCode, body]).toEqual([200, "0123456789"]);
    expect(headers).toMatchObject({
      "content-type": "application/octet-stream",
      "content-length": "10",
      "accept-ranges": "bytes",
      etag: `"${EXPORT_ID}"`,
    });
  });

  it("is gone on with from any byte, unless another file is meant", async () => {
    behave({});
    const part = await read({ range: "bytes=4-", "if-range": `"${EXPORT_ID}"` });
    expect([part.statusCode, part.body, part.headers["content-range"]]).toEqual([206, "456789", "bytes 4-9/10"]);
    const other = await read({ range: "bytes=4-", "if-range": '"another"' });
    expect([other.statusCode, other.body]).toEqual([200, "0123456789"]);
  });

  it("says its size when a range lies outside of it", async () => {
    behave({});
    const { statusCode, headers, body } = await read({ range: "bytes=10-" });
    expect([statusCode, headers["content-range"]]).toEqual([416, "bytes */10"]);
    expect(JSON.parse(body)).toMatchObject({ code: "invalid_request", status: 416 });
  });

  it("that cannot be read is a problem with its status, though its size was known", async () => {
    behave({
      // biome-ignore lint/correctness/useYield: it fails before its first chunk
      async *readExport() {
        throw new LayercastError("rank_lost", "It is gone.");
      },
    });
    const { statusCode, body } = await read();
    expect([statusCode, JSON.parse(body).code]).toEqual([409, "rank_lost"]);
  });

  it("is removed before its time", async () => {
    const removed: string[][] = [];
    behave({ removeExport: async (...asked) => void removed.push(asked) });
    expect((await app.inject({ method: "DELETE", url: URL })).statusCode).toBe(204);
    expect(removed).toEqual([["f", EXPORT_ID]]);
  });
});

it.each([
  [undefined, null],
  ["bytes=0-", { from: 0, to: 10 }],
  ["bytes=2-3", { from: 2, to: 4 }],
  ["bytes=2-99", { from: 2, to: 10 }],
  ["bytes=-3", { from: 7, to: 10 }],
  ["bytes=-99", { from: 0, to: 10 }],
  ["bytes=10-", "unsatisfiable"],
  ["bytes=-0", "unsatisfiable"],
  ["bytes=3-2", null],
  ["bytes=0-1,4-5", null],
  ["bytes=-", null],
  ["lines=0-1", null],
  ["bytes=99999999999999999999-", null],
])("the range %s of 10 bytes is %j", (header, range) => expect(parseRange(header, 10)).toEqual(range));
