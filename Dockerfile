# The proxy as a container: what requirements.lock names, every hash checked, and our three rooms. Nothing else.
#
#   docker build -t tollkeeper .
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges \
#     -v tollkeeper:/var/lib/tollkeeper -v ./policies.yaml:/etc/tollkeeper/policies.yaml:ro tollkeeper
#
# docs/architecture.md tells where to put it; the agent's own container must have no other way out.

FROM python:3.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/tollkeeper
WORKDIR /src
COPY requirements.lock .
RUN /opt/tollkeeper/bin/pip install --no-deps --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY audit audit
COPY policies policies
COPY proxy proxy
RUN /opt/tollkeeper/bin/pip install --no-deps --no-build-isolation . \
    && /opt/tollkeeper/bin/pip uninstall --yes pip

FROM python:3.13-slim-bookworm
RUN groupadd --gid 65532 tollkeeper \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tollkeeper \
    && install -d -o 65532 -g 65532 -m 0700 /var/lib/tollkeeper
COPY --from=build /opt/tollkeeper /opt/tollkeeper
ENV PATH=/opt/tollkeeper/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOLLKEEPER_POLICIES=/etc/tollkeeper/policies.yaml \
    TOLLKEEPER_STATE=/var/lib/tollkeeper \
    TOLLKEEPER_LISTEN=0.0.0.0:8080 \
    TOLLKEEPER_LOG_FORMAT=json
USER 65532:65532
WORKDIR /var/lib/tollkeeper
VOLUME /var/lib/tollkeeper
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s CMD ["python", "-I", "-c", \
    "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:9090/readyz', timeout=2)"]
ENTRYPOINT ["tollkeeper"]
CMD ["serve"]
