// Any thrown value -> an RFC 9457 problem document with our code. Our own errors say everything themselves, a failed
// validation lists the bad fields, a lost Redis connection is `redis_unavailable`; the rest is `internal`, which tells the
// caller nothing but the request id under which the log has the error and its stack.

import type { FastifyError, FastifyReply, FastifyRequest } from "fastify";
import type { Static } from "typebox";
import { ERRORS, type ErrorCode, LayercastError } from "../contract/errors.js";
import type { ProblemAnswer } from "../contract/reload.js";
import { explainTrouble, redisTrouble } from "../host/redis-trouble.js";
import { explainValidation } from "./validation.js";

type Problem = Static<typeof ProblemAnswer>;

export const PROBLEM_TYPE = "application/problem+json";

/** The URI that names a kind of problem; docs/errors.md has a section for each. */
function problemType(code: ErrorCode): string {
  return `urn:layercast:error:${code}`;
}

export function sendProblem(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const problem = problemFrom(error, request);
  logProblem(problem, error, request);
  if (problem.status === 401) reply.header("www-authenticate", 'Bearer realm="layercast"');
  if (problem.status === 429 || problem.status === 503) reply.header("retry-after", retryAfterS(problem));
  // Serialized here: a route's own serializer is chosen by status and content type, which an error must not depend on.
  return reply.code(problem.status).type(PROBLEM_TYPE).serializer(JSON.stringify).send(problem);
}

export function problemFrom(error: unknown, request: FastifyRequest): Problem {
  const known = toLayercastError(error, request);
  return problemOf(known, frameworkStatus(error) ?? ERRORS[known.code].status, request.url.split("?", 1)[0] ?? "/");
}

export function problemOf(
  { code, message, retryable, details }: LayercastError,
  status: number,
  instance: string,
): Problem {
  const { title } = ERRORS[code];
  return {
    type: problemType(code),
    title,
    status,
    detail: message,
    instance,
    code,
    retryable,
    details: { ...details },
  };
}

function toLayercastError(error: unknown, request: FastifyRequest): LayercastError {
  if (error instanceof LayercastError) return error;
  if (error === request.raw.errored && error !== null) return aborted(error);
  const trouble = redisTrouble(error);
  if (trouble !== null) {
    return new LayercastError("redis_unavailable", explainTrouble(trouble), { redis: trouble.code });
  }
  const fastifyError: Partial<FastifyError> = error instanceof Error ? error : {};
  if (fastifyError.validation !== undefined) {
    return explainValidation(fastifyError.validation, fastifyError.validationContext ?? "body");
  }
  if (fastifyError.code === "FST_ERR_CTP_INVALID_MEDIA_TYPE") return wrongType(request);
  if (frameworkStatus(error) !== null) {
    return new LayercastError("invalid_request", `${fastifyError.message ?? "the request cannot be read"}`);
  }
  return new LayercastError(
    "internal",
    `something unexpected happened: the log has it under request_id ${request.id}`,
    {
      request_id: request.id,
    },
  );
}

function wrongType(request: FastifyRequest): LayercastError {
  const wanted = typeWanted(request);
  const came = typeThatCame(request);
  return new LayercastError(
    "invalid_request",
    `the request's body came ${came}; this route takes ${wanted}: send it as that`,
    {
      content_type: request.headers["content-type"] ?? null,
      wanted,
    },
  );
}

/** Of the body's schema; a route without one says JSON, which it then finds empty. */
function typeWanted({ routeOptions }: FastifyRequest): string {
  const body = routeOptions.schema?.body as { content?: Record<string, unknown> } | undefined;
  return Object.keys(body?.content ?? {})[0] ?? "application/json";
}

/** Words for a sentence: with which Content-Type, or without one. */
export function typeThatCame({ headers }: FastifyRequest): string {
  const type = headers["content-type"];
  return type === undefined ? "without a Content-Type" : `with Content-Type: ${type.slice(0, 100)}`;
}

/** Its body broke off: to the error codes of connections, which Redis's has too, this one is nothing but the client's. */
function aborted(error: unknown): LayercastError {
  return new LayercastError(
    "request_aborted",
    "the connection ended before the request's body had come; send it again",
    {},
    error,
  );
}

/** Fastify's own refusals (body too large, unknown media type, malformed JSON) keep their 4xx status. */
function frameworkStatus(error: unknown): number | null {
  if (error instanceof LayercastError || !(error instanceof Error)) return null;
  const status = (error as Partial<FastifyError>).statusCode;
  return status !== undefined && status >= 400 && status < 500 ? status : null;
}

function retryAfterS(problem: Problem): string {
  const asked = problem.details.retry_after_s;
  return String(typeof asked === "number" && asked > 0 ? Math.ceil(asked) : 1);
}

function logProblem(problem: Problem, error: unknown, request: FastifyRequest): void {
  const fields = { code: problem.code, status: problem.status };
  // Each probe and each request meets a Redis that is away; the log says so at its own pace, by what connections tell it.
  if (problem.code === "redis_unavailable" && redisTrouble(error) === null) request.log.debug(fields, problem.detail);
  else if (problem.status >= 500) request.log.error({ ...fields, err: error }, problem.detail);
  else request.log.info(fields, problem.detail);
}
