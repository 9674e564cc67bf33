// The routes of push sessions: send a bucket, as a file or as a body, wait until it is consumed, finish.

import { Readable } from "node:stream";
import type { FastifyRequest } from "fastify";
import { Type } from "typebox";
import { LayercastError } from "../contract/errors.js";
import { BucketAnswer, BucketBody, type BucketView, ExpectedTensorsAnswer } from "../contract/push.js";
import { ReloadAnswer } from "../contract/reload.js";
import type { App, RouteDeps } from "./app.js";
import { readInTime } from "./lifetime.js";
import { typeThatCame } from "./problem.js";
import { reloadPath } from "./reloads.js";
import { BucketParams, closed, problems, ReloadParams, ref } from "./schemas.js";
import { parseWait } from "./wait.js";

const tags = ["pushes"];

/** What a bucket can be refused for. */
const BUCKET_PROBLEMS = [
  "invalid_request",
  "not_found",
  "backpressure",
  "session_closed",
  "checkpoint_invalid",
  "tensor_unexpected",
  "tensor_duplicate",
  "shape_mismatch",
  "dtype_mismatch",
  "source_gone",
  "source_changed",
  "out_of_memory",
  "io_error",
] as const;

export function addBucketRoutes(app: App, deps: RouteDeps): void {
  addPost(app, deps);
  // Of this route alone: a body that is read by who takes it, as it comes.
  app.register(async (scope: App) => {
    scope.addContentTypeParser(BUCKET_TYPE, (_request, payload, done) => done(null, payload));
    addPut(scope, deps);
  });
  addRead(app, deps);
  addExpected(app, deps);
  addFinish(app, deps);
}

function bucketPath(id: string, { bucket }: BucketView): string {
  return `/v1/reloads/${encodeURIComponent(id)}/buckets/${bucket}`;
}

function addPost(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "postBucket",
    tags,
    summary: "Send a push a bucket that is a file",
    description:
      "A safetensors file with any of the push's tensors, or rows of them. The same file again is the same bucket.",
    params: ReloadParams,
    body: ref(BucketBody),
    response: { 202: ref(BucketAnswer), ...problems(...BUCKET_PROBLEMS, "source_not_found", "source_not_allowed") },
  };
  app.post("/v1/reloads/:id/buckets", { schema }, async (request, reply) => {
    const { id } = request.params;
    const bucket = await reloads.postBucket(id, request.body);
    return reply.code(202).header("location", bucketPath(id, bucket)).send(bucket);
  });
}

const BUCKET_TYPE = "application/octet-stream";

function addPut(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "putBucket",
    tags,
    summary: "Send a push a bucket as a body",
    description:
      "The bytes of a safetensors file, with Content-Length. The same bytes under the same number again are the same bucket.",
    params: BucketParams,
    body: { content: { [BUCKET_TYPE]: { schema: {} } } },
    response: { 202: ref(BucketAnswer), ...problems(...BUCKET_PROBLEMS) },
  };
  app.put("/v1/reloads/:id/buckets/:bucket", { schema, bodyLimit: Number.MAX_SAFE_INTEGER }, async (request, reply) => {
    const { id, bucket: number } = request.params;
    const body: unknown = request.body;
    const sizeBytes = Number(request.headers["content-length"] ?? Number.NaN);
    if (!(body instanceof Readable) || !Number.isSafeInteger(sizeBytes)) throw notABody(request);
    const bucket = await reloads.putBucket(id, number, body, sizeBytes);
    return reply.code(202).header("location", bucketPath(id, bucket)).send(bucket);
  });
}

function notABody(request: FastifyRequest): LayercastError {
  const length = request.headers["content-length"];
  const withLength = length === undefined ? "without a Content-Length" : `with Content-Length: ${length}`;
  return new LayercastError(
    "invalid_request",
    `a bucket's body is sent with Content-Type: ${BUCKET_TYPE} and with Content-Length; this one came ` +
      `${typeThatCame(request)} and ${withLength}`,
  );
}

const WaitQuery = Type.Object(
  {
    wait: Type.Optional(
      Type.String({
        description: "Answer when it is consumed or wanted, or after this time: such as 30s; at most 60s",
      }),
    ),
  },
  closed,
);

function addRead(app: App, { reloads, closing }: RouteDeps): void {
  const schema = {
    operationId: "getBucket",
    tags,
    summary: "Read one bucket, waiting until its memory is the trainer's again when asked to",
    params: BucketParams,
    querystring: WaitQuery,
    response: { 200: ref(BucketAnswer), ...problems("invalid_request", "not_found", "source_gone") },
  };
  app.get("/v1/reloads/:id/buckets/:bucket", { schema }, async (request, reply) => {
    const waitMs = parseWait(request.query.wait);
    const { id, bucket } = request.params;
    return readInTime(reply, closing, waitMs, (ms, signal) => reloads.bucket(id, bucket, ms, signal));
  });
}

function addExpected(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "getExpectedTensors",
    tags,
    summary: "What a push is to be sent, module by module, and how much of it has come",
    params: ReloadParams,
    response: {
      200: ref(ExpectedTensorsAnswer),
      ...problems("invalid_request", "not_found", "backpressure", "source_gone"),
    },
  };
  app.get("/v1/reloads/:id/tensors", { schema }, async ({ params }) => reloads.expectedTensors(params.id));
}

function addFinish(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "finishPush",
    tags,
    summary: "Say that all has been sent: ranks finalize, and the reload goes on like any other",
    params: ReloadParams,
    response: {
      202: ref(ReloadAnswer),
      ...problems("invalid_request", "not_found", "backpressure", "session_closed", "tensor_missing", "source_gone"),
    },
  };
  app.post("/v1/reloads/:id/finish", { schema }, async (request, reply) => {
    const { id } = request.params;
    await reloads.finish(id);
    const reload = await reloads.get(id, 0, new AbortController().signal);
    return reply.code(202).header("location", reloadPath(reload)).send(reload);
  });
}
