# A worker: one rank of one replica, on the CPU device. Its arena lies in /var/lib/layercast, which consumers mount too.
# Build it from the repository's root: docker build -f deploy/worker.Dockerfile .

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
COPY --from=build /app/native/build/Release/layercast.node /app/native/build/Release/layercast-holder ./native/build/Release/
RUN install -d -o node -g node /var/lib/layercast
USER node
ENTRYPOINT ["node", "dist/orchestrator/cli/main.js"]
CMD ["worker", "--rank", "0", "--tp", "1", "--run-dir", "/var/lib/layercast"]
