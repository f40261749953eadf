# docker build -t control-plane:0.1.0 .
# To pin what it is built on: --build-arg NODE_IMAGE=node:24.11.1-bookworm-slim@sha256:...
ARG NODE_IMAGE=node:24.11.1-bookworm-slim

FROM ${NODE_IMAGE} AS build
WORKDIR /build
COPY package.json package-lock.json .npmrc ./
RUN npm ci --no-audit --no-fund
COPY nest-cli.json tsconfig*.json ./
COPY scripts ./scripts
COPY examples ./examples
COPY migrations ./migrations
COPY src ./src
RUN npm run build

FROM ${NODE_IMAGE} AS dependencies
WORKDIR /build
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev --no-audit --no-fund

FROM ${NODE_IMAGE}
# Others can reach a container's port, so agents need an enrollment token.
ENV NODE_ENV=production \
    CONTROL_PLANE_BIND=0.0.0.0:8080 \
    CONTROL_PLANE_REGISTRATION=token \
    CONTROL_PLANE_DATABASE_URL=sqlite:///var/lib/control-plane/control-plane.db
COPY --from=dependencies /build/node_modules /opt/control-plane/node_modules
COPY --from=build /build/package.json /opt/control-plane/
COPY --from=build /build/dist /opt/control-plane/dist
RUN install -d -o node -g node -m 700 /var/lib/control-plane \
  && ln -s /opt/control-plane/dist/main.js /usr/local/bin/control-plane
# By number, so that Kubernetes can tell that it is not root.
USER 1000:1000
# The database and the files beside it, where nothing else is said.
WORKDIR /var/lib/control-plane
VOLUME /var/lib/control-plane
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:8080/healthz').then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["node", "/opt/control-plane/dist/main.js"]
CMD ["serve"]
