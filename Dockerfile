#   docker build --target cpu -t earth2serve:0.1.0-cpu .     synthetic models, no GPU
#   docker build --target gpu -t earth2serve:0.1.0 .         FCN3 and StormScope
#   docker build --target gpu --build-arg MODELS=fcn3 ...    only FCN3: without natten, which takes long
#
# Builders without BuildKit (`az acr build`) build all stages above the target. In this order they
# compile nothing for the CPU image.
#
# Weights are never in the image: mount them, or name a folder for them in EARTH2STUDIO_CACHE.

# The release that pyproject.toml pins: all pods of a cluster need exactly the same.
ARG RAY_VERSION=2.60.0
ARG PYTHON=py312
# "@sha256:…" of Ray's images, which a tag does not fix (docs/security.md).
ARG RAY_CPU_DIGEST=
ARG RAY_GPU_DIGEST=
# CUDA version of Ray's GPU image, whose nvcc compiles torch-harmonics and natten; equal to torch's.
ARG CUDA=cu130

# ---- Common to both targets. ----
# Ray's CPU image of the same release: its GPU image is CUDA's developer image with nvcc and g++.
# torch's wheels contain the CUDA libraries, and the node provides the driver.
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}-cpu${RAY_CPU_DIGEST} AS base
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
USER root
# Ray's image lets its user become root without a password. The rest checks that the requirements of
# pods exist (wget for KubeRay's probes, certificate authorities for TLS to PostgreSQL), and that the
# build tools which Ray's Dockerfile removes do not. It does not mention gcc and make.
RUN sed -i '/^ray[[:space:]]/d' /etc/sudoers \
    && if id -nG ray | grep -qw sudo; then gpasswd -d ray sudo; fi \
    && install -d -o 1000 -g 100 /app /data /weights \
    && command -v wget && test -s /etc/ssl/certs/ca-certificates.crt \
    && if command -v g++ cmake nvcc; then exit 1; fi
USER 1000:100
WORKDIR /app
# Variables that Serve's YAML cannot set, as in serve_app/__main__.py; also in
# config/kuberay/base/environment.yaml, for pods with another image. RAY_AUTH_MODE is set by whatever
# starts Ray: `python -m serve_app` creates its own token, KubeRay one for each cluster.
ENV RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/app/serve_app/haproxy/haproxy \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.serve_layer:middlewares \
    RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=2 \
    RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0 \
    RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=1 \
    RAY_DEDUP_LOGS=0 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY --chown=1000:100 pyproject.toml README.md LICENSE constraints.txt ./
COPY --chown=1000:100 serve_app serve_app
COPY --chown=1000:100 deployments deployments
COPY --chown=1000:100 workflows workflows
COPY --chown=1000:100 examples examples
COPY --chown=1000:100 config config
EXPOSE 8000
# KubeRay replaces this command with `ray start`. On its own the container is a server: docker run -p
# 127.0.0.1:8000:8000. The shell expands the variable, since containers cannot always be started with
# arguments. Of several names, separated by spaces, the first file that exists is served.
ENV EARTH2SERVE_CONFIG=config/container.yaml
CMD ["sh", "-c", "for config in $EARTH2SERVE_CONFIG; do [ -e \"$config\" ] && break; done; exec python -m serve_app \"$config\""]
# Kubernetes has its own probes. Startup takes 20 to 60 s, and this route needs no token.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["wget", "--quiet", "--tries=1", "--timeout=4", "--output-document=-", "http://127.0.0.1:8000/liveness"]

# ---- Synthetic models without a GPU; Azure's libraries for delivery. ----
FROM base AS cpu
# Editable: earth2serve is the folder /app, which also contains examples and configurations.
RUN pip install -c constraints.txt -e '.[azure]'

# ---- Compiled wheels; the build tools stay in this stage. ----
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}-${CUDA}${RAY_GPU_DIGEST} AS wheels
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /home/ray/build
# `models` for all, `fcn3` for only FCN3.
ARG MODELS=models
# The revisions that Earth2Studio 0.19.0 pins (docs/models.md).
ARG TORCH_HARMONICS=a632ca748a12bd9f74dbc1e00653317810991f74
ARG MAKANI=b38fcb2799d7dbc146fa60459f3f9823394a8bf1
ARG EARTH2GRID=11dcf1b0787a7eb6a8497a3a5a5e1fdcc31232d3
# Earth2Studio pins no natten; this release fits the torch of constraints.txt.
ARG NATTEN=0.21.7
# A100 and H100, which have enough memory for the models. Without a GPU nvcc cannot detect them.
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0"
ARG NATTEN_CUDA_ARCH="8.0;9.0"
# Each parallel compiler takes some GB of memory.
ARG MAX_JOBS=4
ENV FORCE_CUDA_EXTENSION=1 FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST} \
    NATTEN_CUDA_ARCH=${NATTEN_CUDA_ARCH} MAX_JOBS=${MAX_JOBS} NATTEN_N_WORKERS=${MAX_JOBS}
COPY --chown=1000:100 constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch setuptools wheel ninja cmake
# Packages without wheels, one layer each, so that a failure does not repeat the previous builds.
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation -w /home/ray/wheels \
    "torch-harmonics @ git+https://github.com/NVIDIA/torch-harmonics.git@${TORCH_HARMONICS}"
RUN pip wheel --no-cache-dir --no-deps -w /home/ray/wheels \
    "makani @ git+https://github.com/NVIDIA/makani.git@${MAKANI}"
RUN if [[ ${MODELS} == models ]]; then \
      pip wheel --no-cache-dir --no-deps --no-build-isolation -w /home/ray/wheels "natten==${NATTEN}"; \
      pip wheel --no-cache-dir --no-deps --no-build-isolation -w /home/ray/wheels \
        "earth2grid @ git+https://github.com/NVlabs/earth2grid.git@${EARTH2GRID}"; \
    fi

# ---- GPUs. The last stage, which a build without --target makes. ----
FROM base AS gpu
ARG MODELS=models
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    EARTH2STUDIO_CACHE=/weights/cache
# Not RUN --mount, which builders without BuildKit reject.
COPY --chown=1000:100 --from=wheels /home/ray/wheels /tmp/wheels
RUN extras=fcn3,data && if [[ ${MODELS} == models ]]; then extras+=,interp-modafno,stormscope; fi \
    && pip install -c constraints.txt --find-links /tmp/wheels /tmp/wheels/*.whl \
        -e '.[azure,earth2studio]' "earth2studio[${extras}]>=0.19,<0.20" \
    && rm -r /tmp/wheels \
    && python -c "import makani, torch_harmonics"
