# A worker: one rank of one replica. Its arena lies in /var/lib/layercast, which consumers mount too. On the CPU device, from the
# repository's root: docker build -f deploy/worker.Dockerfile .
# For GPUs the build needs a CUDA toolkit; what it makes needs the driver alone, which the container's runtime brings:
#   docker build -f deploy/worker.Dockerfile --build-arg BUILD_IMAGE=nvidia/cuda:12.4.1-devel-ubuntu22.04 .
#   docker run --gpus all --ipc host ... worker --device cuda:0 ...

ARG BUILD_IMAGE=node:20-bookworm-slim

FROM node:20-bookworm-slim AS node

FROM ${BUILD_IMAGE} AS build
COPY --from=node /usr/local /usr/local
WORKDIR /app
COPY . .
# Redis is another container's: set, it tells the set-up that none is to be installed here.
ENV REDIS_URL=redis://redis:6379
RUN bash deploy/setup.sh
RUN npm prune --ignore-scripts --omit=dev --omit=optional

FROM node:20-bookworm-slim
WORKDIR /app
COPY --from=build /app/package.json ./
COPY --from=build /app/node_modules ./node_modules
COPY --from=build /app/dist/orchestrator ./dist/orchestrator
COPY --from=build /app/dist/worker ./dist/worker
COPY --from=build /app/dist/native ./dist/native
COPY --from=build /app/native/prebuilt ./native/prebuilt
RUN install -d -o node -g node /var/lib/layercast
USER node
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A worker touches its rank's file `registered` each second while Redis takes its sign of life. Where ranks share the volume, check the one's own file.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
  CMD ["sh", "-c", "test -n \"$(find /var/lib/layercast -name registered -newermt '-15 seconds')\""]
ENTRYPOINT ["node", "dist/orchestrator/cli/main.js"]
CMD ["worker", "--rank", "0", "--tp", "1", "--run-dir", "/var/lib/layercast"]
