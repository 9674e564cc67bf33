// The routes of reloads: submit (or only plan it), list, read with a long poll, cancel.

import { Type } from "typebox";
import { LayercastError } from "../contract/errors.js";
import {
  RELOAD_STATES,
  ReloadAnswer,
  ReloadListAnswer,
  type ReloadStateName,
  type ReloadView,
  SubmitBody,
  type SubmitRequest,
} from "../contract/reload.js";
import { oneOf } from "../contract/schema.js";
import type { App, RouteDeps } from "./app.js";
import { readInTime } from "./lifetime.js";
import { closed, problems, ReloadParams, ref } from "./schemas.js";
import { parseWait } from "./wait.js";

const tags = ["reloads"];

/** A push may list a hundred thousand tensors. */
export const SUBMIT_LIMIT_BYTES = 64 * 1024 * 1024;

/** What reading and planning a source can end in. */
export const PLAN_PROBLEMS = [
  "invalid_request",
  "source_not_found",
  "source_not_allowed",
  "source_changed",
  "checkpoint_invalid",
  "unsupported_architecture",
  "unsupported_dtype",
  "unsupported_recipe",
  "tensor_missing",
  "tensor_unexpected",
  "shape_mismatch",
  "indivisible",
  "io_error",
] as const;

export function addReloadRoutes(app: App, deps: RouteDeps): void {
  addSubmit(app, deps);
  addRead(app, deps);
  addCancel(app, deps);
}

function addSubmit(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "submitReload",
    tags,
    summary: "Submit a reload",
    description:
      "The same `submission_id` with the same body is the same reload: it answers 202 with that reload's record.",
    body: ref(SubmitBody),
    response: {
      202: ref(ReloadAnswer),
      ...problems(...PLAN_PROBLEMS, "submission_conflict", "not_found", "backpressure"),
    },
  };
  app.post("/v1/reloads", { schema, bodyLimit: SUBMIT_LIMIT_BYTES }, async (request, reply) => {
    refusePartialInPlace(request.body);
    const { reload } = await reloads.submit(request.body);
    return reply.code(202).header("location", reloadPath(reload)).send(reload);
  });
}

function refusePartialInPlace({ source, install }: SubmitRequest): void {
  if (source.partial === true && install.mode === "in_place")
    throw new LayercastError(
      "invalid_request",
      "a partial push in place could not be taken back; push with install.mode staged, or push all modules",
    );
}

export function reloadPath(reload: ReloadView): string {
  return `/v1/reloads/${encodeURIComponent(reload.reload_id)}`;
}

const ListQuery = Type.Object(
  {
    fleet: Type.Optional(Type.String({ minLength: 1, maxLength: 100 })),
    state: Type.Optional(Type.Unsafe<ReloadStateName>({ type: "string", enum: [...RELOAD_STATES] })),
    limit: Type.Integer({ minimum: 1, maximum: 200, default: 50 }),
    view: oneOf(["full", "summary"], {
      default: "full",
      description: "In a `summary` `ranks` and `layers` are empty, `push` is null and `progress` counts nothing",
    }),
    cursor: Type.Optional(
      Type.String({ minLength: 1, maxLength: 500, description: "`next_cursor` of the page before" }),
    ),
  },
  closed,
);

const WaitQuery = Type.Object(
  {
    wait: Type.Optional(
      Type.String({
        description: "Answer when the reload has ended, or after this time: such as 500ms, 30s, 1m; at most 60s",
      }),
    ),
  },
  closed,
);

function addRead(app: App, { reloads, closing }: RouteDeps): void {
  const list = {
    operationId: "listReloads",
    tags,
    summary: "List reloads, newest first",
    querystring: ListQuery,
    response: { 200: ref(ReloadListAnswer), ...problems("invalid_request") },
  };
  app.get("/v1/reloads", { schema: list }, async ({ query }) =>
    reloads.list({
      fleet: query.fleet ?? null,
      state: query.state ?? null,
      limit: query.limit,
      cursor: query.cursor ?? null,
      view: query.view,
    }),
  );

  const get = {
    operationId: "getReload",
    tags,
    summary: "Read one reload, waiting for its end when asked to",
    params: ReloadParams,
    querystring: WaitQuery,
    response: { 200: ref(ReloadAnswer), ...problems("invalid_request", "not_found") },
  };
  app.get("/v1/reloads/:id", { schema: get }, async (request, reply) => {
    const waitMs = parseWait(request.query.wait);
    const { id } = request.params;
    return readInTime(reply, closing, waitMs, (ms, signal) => reloads.get(id, ms, signal));
  });
}

function addCancel(app: App, { reloads }: RouteDeps): void {
  const schema = {
    operationId: "cancelReload",
    tags,
    summary: "Cancel a reload that is not decided yet",
    params: ReloadParams,
    response: { 200: ref(ReloadAnswer), ...problems("invalid_request", "not_found", "not_cancellable") },
  };
  app.post("/v1/reloads/:id/cancel", { schema }, async (request) => reloads.cancel(request.params.id));
}
