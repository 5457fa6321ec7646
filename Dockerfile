# syntax=docker/dockerfile:1
# The web and the worker process of finalsale in one image: `finalsale web` (default), `finalsale worker`, `finalsale migrate`.

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
# Every package is pinned with its hash and comes as a wheel: nothing is compiled and nothing newer slips in.
COPY requirements.txt requirements-dev.txt ./
RUN python -m venv /opt/finalsale \
 && /opt/finalsale/bin/pip install --require-hashes --only-binary :all: -r requirements.txt \
 && python -m venv /opt/builder \
 && /opt/builder/bin/pip install --require-hashes --only-binary :all: -r requirements-dev.txt
COPY pyproject.toml README.md LICENSE ./
COPY handlers handlers
COPY reconcile reconcile
COPY worker worker
# The build backend is the pinned one of requirements-dev.txt; it stays behind with this stage.
RUN /opt/builder/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/finalsale/bin/pip install --no-deps --no-index /wheels/*.whl \
 && /opt/finalsale/bin/python -m compileall -q /opt/finalsale/lib

FROM python:3.13-slim
# A user without a shell or a home; its only writable place is where the embedded servers would keep their files.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin finalsale \
 && install -d -o finalsale -g finalsale /var/lib/finalsale
COPY --from=build /opt/finalsale /opt/finalsale
ENV PATH=/opt/finalsale/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FINALSALE_STATE_DIR=/var/lib/finalsale \
    FINALSALE_LOG=json \
    PORT=8080
USER finalsale
WORKDIR /var/lib/finalsale
EXPOSE 8080
STOPSIGNAL SIGTERM
# For the web process; a worker has no port: start it with `docker run --no-healthcheck ... finalsale worker`.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/healthz\", timeout=2)"]
CMD ["finalsale", "web"]
