# The orchestrator: REST API, planner, flows. It needs a Redis (REDIS_URL) and, since it listens on all of the container's
# addresses, a token (LAYERCAST_TOKEN). It has no native core, and so no compiler is needed to build it.
# Build it from the repository's root: docker build -f deploy/orchestrator.Dockerfile .

FROM node:20-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm install --no-save --ignore-scripts --include=dev
COPY . .
RUN npm run build
RUN npm prune --ignore-scripts --omit=dev --omit=optional

FROM node:20-bookworm-slim
WORKDIR /app
COPY --from=build /app/package.json ./
COPY --from=build /app/node_modules ./node_modules
COPY --from=build /app/dist/orchestrator ./dist/orchestrator
COPY --from=build /app/dist/native ./dist/native
COPY --from=build /app/orchestrator/dashboard ./orchestrator/dashboard
RUN install -d -o node -g node /spool
USER node
EXPOSE 8600
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
  CMD ["node", "-e", "fetch('http://127.0.0.1:8600/readyz').then((answer) => process.exit(answer.ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["node", "dist/orchestrator/cli/main.js"]
CMD ["orchestrator", "--host", "0.0.0.0", "--port", "8600", "--source-root", "/checkpoints", "--spool-dir", "/spool"]
