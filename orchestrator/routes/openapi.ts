// The OpenAPI 3.1 document at /openapi.json and the page to try it at /docs, both made from the routes' schemas.

import swagger from "@fastify/swagger";
import swaggerUi from "@fastify/swagger-ui";
import type { App } from "./app.js";
import { forClients, INFO, SERVERS } from "./openapi-document.js";

/** Before the routes, which it listens to. */
export async function addOpenApi(app: App): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: INFO,
      servers: SERVERS,
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
  app.get("/openapi.json", { schema: { hide: true } }, async () => forClients(app.swagger()));
}
