# bisup as a container: docker build -t bisup . && docker run --rm -p 8080:8080 bisup
#
# The demo model is inside; another one: docker run -v /path/to/model:/model:ro ... bisup serve /model
# Settings come as flags after "serve" or as variables BISUP_* (config/bisup.conf.example names them).
# The package lists are the Makefile's.

# ---- Build ----------------------------------------------------------------------------------------
FROM debian:bookworm-slim AS build
ENV DEBIAN_FRONTEND=noninteractive
WORKDIR /src
COPY Makefile ./
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends make \
 && apt-get install -y -qq --no-install-recommends $(make -s deps-list SET=BUILD) \
 && rm -rf /var/lib/apt/lists/*
COPY . .
RUN make -s -j"$(nproc)" all \
 && strip --strip-debug build/release/bisup \
 && make -s deps-list SET=RUN > /run-packages

# ---- CPU server -----------------------------------------------------------------------------------
FROM debian:bookworm-slim AS cpu
LABEL org.opencontainers.image.title="bisup" \
      org.opencontainers.image.description="LLM inference server with an OpenAI REST API, for CPUs, with a demo model" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /run-packages /tmp/run-packages
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive xargs apt-get install -y -qq --no-install-recommends < /tmp/run-packages \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /tmp/run-packages \
 && useradd --system --no-create-home --shell /usr/sbin/nologin --uid 10001 bisup
COPY --from=build /src/build/release/bisup /usr/local/bin/bisup
COPY LICENSE /usr/share/doc/bisup/LICENSE
COPY models/demo /models/demo
# In a container the server must listen on every network; 'health' asks this machine at the same port.
ENV BISUP_HOST=0.0.0.0 BISUP_PORT=8080 BISUP_MODEL=/models/demo
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["bisup", "health"]
ENTRYPOINT ["bisup"]
CMD ["serve"]
