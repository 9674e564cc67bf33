# The orchestrator: REST API, planner, flows. It needs a Redis (REDIS_URL) and, since it listens on all of the container's
# addresses, a token (LAYERCAST_TOKEN). Build it from the repository's root: docker build -f deploy/orchestrator.Dockerfile .

FROM node:20-bookworm-slim AS build
WORKDIR /app
COPY . .
# Redis is another container's: set, it tells the set-up that none is to be installed here.
ENV REDIS_URL=redis://redis:6379
RUN bash deploy/setup.sh

FROM node:20-bookworm-slim
WORKDIR /app
COPY --from=build /app/package.json /app/package-lock.json ./
COPY --from=build /app/node_modules ./node_modules
COPY --from=build /app/dist ./dist
COPY --from=build /app/orchestrator/dashboard ./orchestrator/dashboard
RUN install -d -o node -g node /spool
USER node
EXPOSE 8600
ENTRYPOINT ["node", "dist/orchestrator/cli/main.js"]
CMD ["orchestrator", "--host", "0.0.0.0", "--port", "8600", "--source-root", "/checkpoints", "--spool-dir", "/spool"]
