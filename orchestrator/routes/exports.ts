// The routes of exports: write a rank's kernel tensors to a file on its host, read that file from anywhere, remove it.

import { Readable } from "node:stream";
import type { FastifyReply } from "fastify";
import { Type } from "typebox";
import { countOf } from "../contract/count-of.js";
import { LayercastError } from "../contract/errors.js";
import { ExportAnswer, ExportBody, ProblemAnswer } from "../contract/reload.js";
import type { App, RouteDeps } from "./app.js";
import { requestSignal } from "./lifetime.js";
import { PROBLEM_TYPE, problemFrom } from "./problem.js";
import { ExportParams, FleetParams, problems, ref, textAnswer } from "./schemas.js";

const tags = ["fleets"];

const BYTES = "application/octet-stream";
/** A client that takes nothing for so long is gone, or might as well be: it may go on later, by a range. */
const STALL_MS = 60_000;

export function addExportRoutes(app: App, deps: RouteDeps): void {
  addExport(app, deps);
  addRead(app, deps);
  addRemove(app, deps);
}

function addExport(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "exportRank",
    tags,
    summary: "Write a rank's live kernel tensors to a safetensors file on its host",
    params: FleetParams,
    body: ref(ExportBody),
    response: {
      200: ref(ExportAnswer),
      ...problems(
        "invalid_request",
        "not_found",
        "fleet_incomplete",
        "rank_lost",
        "reload_in_progress",
        "not_prepared",
        "out_of_memory",
        "deadline_exceeded",
        "io_error",
      ),
    },
  };
  app.post("/v1/fleets/:fleet/exports", { schema }, async (request) =>
    reloads.exportRank(request.params.fleet, request.body.replica, request.body.rank),
  );
}

function addRead(app: App, { reloads, closing }: RouteDeps): void {
  const schema = {
    operationId: "readExport",
    tags,
    summary: "Read an export's bytes, from whichever host it lies on",
    description:
      "The whole file, or one range of it (`Range: bytes=FROM-`): a connection that broke is gone on with. The bytes of an export " +
      "never change. It is removed an hour after it was last read.",
    params: ExportParams,
    headers: Type.Object({
      range: Type.Optional(Type.String({ description: "One range of bytes" })),
      "if-range": Type.Optional(Type.String({ description: "The ETag; with another one the whole file is sent" })),
    }),
    response: {
      200: textAnswer(BYTES, "The file"),
      206: textAnswer(BYTES, "The range"),
      416: { description: "The file has no such range", content: { [PROBLEM_TYPE]: { schema: ref(ProblemAnswer) } } },
      ...problems("invalid_request", "not_found", "rank_lost", "backpressure", "io_error"),
    },
  };
  const options = { schema, exposeHeadRoute: false }; // which would read the whole file
  app.get("/v1/fleets/:fleet/exports/:export", options, async (request, reply) => {
    const { fleet, export: id } = request.params;
    const etag = `"${id}"`;
    const size = await reloads.exportSize(fleet, id);
    const { range: asked, "if-range": same } = request.headers;
    const range = same === undefined || same === etag ? parseRange(asked, size) : null;
    reply.header("accept-ranges", "bytes").header("etag", etag);
    if (range === "unsatisfiable") {
      const problem = problemFrom(noSuchRange(asked, size), request);
      reply.header("content-range", `bytes */${size}`).type(PROBLEM_TYPE).serializer(JSON.stringify);
      return reply.code(416).send({ ...problem, status: 416 });
    }
    const { from, to } = range ?? { from: 0, to: size };
    if (range !== null) reply.code(206).header("content-range", `bytes ${from}-${to - 1}/${size}`);
    const signal = requestSignal(reply, closing);
    const chunks = reloads.readExport(fleet, id, from, to, signal);
    return sendBytes(reply, to - from, await startedStream(chunks));
  });
}

/** The first chunk is there before the answer begins, so that what cannot be read is a problem with its status. */
async function startedStream(chunks: AsyncGenerator<Buffer>): Promise<Readable> {
  const first = await chunks.next();
  async function* all() {
    try {
      if (!first.done) yield first.value;
      yield* chunks;
    } finally {
      await chunks.return(undefined);
    }
  }
  return Readable.from(all(), { objectMode: false });
}

function sendBytes(reply: FastifyReply, bytes: number, body: Readable): FastifyReply {
  reply.raw.setTimeout(STALL_MS, () => reply.raw.destroy());
  return reply.type(BYTES).header("content-length", bytes).send(body);
}

/** `to` is behind the last byte. Null: the whole file, as for several ranges or another unit. */
export function parseRange(
  header: string | undefined,
  size: number,
): { from: number; to: number } | "unsatisfiable" | null {
  const [, first = "", last = ""] = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header?.replaceAll(" ", "") ?? "") ?? [];
  if (first === "" && last === "") return null;
  if (first !== "" && last !== "" && Number(last) < Number(first)) return null;
  const from = first === "" ? Math.max(0, size - Number(last)) : Number(first);
  const to = first === "" || last === "" ? size : Math.min(size, Number(last) + 1);
  return from < to ? { from, to } : "unsatisfiable";
}

function noSuchRange(range: string | undefined, size: number): LayercastError {
  return new LayercastError(
    "invalid_request",
    `The export has ${countOf(size, "byte")}, which do not hold the range '${range}'.`,
    { size },
  );
}

function addRemove(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "removeExport",
    tags,
    summary: "Remove an export before its time",
    params: ExportParams,
    response: {
      204: { type: "null", description: "It is gone" },
      ...problems("invalid_request", "not_found", "rank_lost", "io_error"),
    },
  };
  app.delete("/v1/fleets/:fleet/exports/:export", { schema }, async (request, reply) => {
    await reloads.removeExport(request.params.fleet, request.params.export);
    return reply.code(204).send(null);
  });
}
