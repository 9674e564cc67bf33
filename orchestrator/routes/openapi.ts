// The OpenAPI 3.1 document at /openapi.json and the page to try it at /docs, both made from the routes' schemas.

import swagger from "@fastify/swagger";
import swaggerUi from "@fastify/swagger-ui";
import { VERSION } from "../version.js";
import type { App } from "./app.js";

/** Before the routes, which it listens to. */
export async function addOpenApi(app: App): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "Layercast",
        version: VERSION,
        description:
          "Puts new weights into a running inference fleet: all ranks or none. Errors are RFC 9457 problems with a stable `code`.",
      },
      tags: [
        { name: "reloads", description: "Submit, follow and cancel reloads" },
        { name: "pushes", description: "Send weights in buckets instead of naming a checkpoint" },
        { name: "plans", description: "See what a reload would do" },
        { name: "fleets", description: "What the fleets hold" },
        { name: "health", description: "Probes and metrics" },
      ],
      components: {
        securitySchemes: {
          bearer: {
            type: "http",
            scheme: "bearer",
            description: "Needed when the orchestrator was started with a token",
          },
        },
      },
      security: [{ bearer: [] }],
    },
    refResolver: {
      buildLocalReference: (json, _base, _fragment, index) =>
        typeof json.$id === "string" ? json.$id : `schema-${index}`,
    },
  });
  await app.register(swaggerUi, { routePrefix: "/docs", uiConfig: { persistAuthorization: false }, staticCSP: true });
  app.get("/openapi.json", { schema: { hide: true } }, async () => app.swagger());
}
