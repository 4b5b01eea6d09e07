#   docker build --target cpu -t earth2serve:0.1.0-cpu .     synthetic models, no GPU
#   docker build --target gpu -t earth2serve:0.1.0 .         FCN3 and StormScope
#   docker build --target gpu --build-arg MODELS=fcn3 ...    FCN3 alone: no natten, which takes long
#
# The stages stand in this order for builders without BuildKit (`az acr build`), which make all those
# above the target: nothing is compiled for the one without a GPU.
#
# Weights are never in it: mount them, or name a folder for them in EARTH2STUDIO_CACHE.

# The release that pyproject.toml pins: a cluster's pods must agree to the last digit.
ARG RAY_VERSION=2.60.0
ARG PYTHON=py312
# Of Ray's GPU image, whose nvcc compiles torch-harmonics and natten; as torch's CUDA.
ARG CUDA=cu130

# ---- Common to both targets. ----
# Ray's CPU image of the same release: its GPU image is CUDA's for developers and keeps nvcc and g++.
# torch's wheels bring the CUDA libraries, and the node its driver.
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}-cpu AS base
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
USER root
# Ray's image lets its user become root without a password. The rest looks whether there is what pods
# count on (wget for KubeRay's probes, authorities for TLS to PostgreSQL), and nothing to build with:
# what Ray's Dockerfile says that it removes. Of gcc and make it says nothing.
RUN sed -i '/^ray[[:space:]]/d' /etc/sudoers \
    && if id -nG ray | grep -qw sudo; then gpasswd -d ray sudo; fi \
    && install -d -o 1000 -g 100 /app /data /weights \
    && command -v wget && test -s /etc/ssl/certs/ca-certificates.crt \
    && if command -v g++ cmake nvcc; then exit 1; fi
USER 1000:100
WORKDIR /app
# What YAML of Serve cannot set, as in serve_app/__main__.py; config/kuberay/base/environment.yaml has
# it again, for pods with another image. RAY_AUTH_MODE is left to who starts Ray: `python -m serve_app`
# makes a token of its own, KubeRay one for each cluster.
ENV RAY_SERVE_ENABLE_HA_PROXY=1 \
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
# KubeRay starts `ray start` in its place. On its own it is a server: docker run -p 127.0.0.1:8000:8000.
# By a shell only for the variable: who starts a container cannot always give it arguments. Of several
# names with blanks between them it serves the first that is there.
ENV EARTH2SERVE_CONFIG=config/container.yaml
CMD ["sh", "-c", "for config in $EARTH2SERVE_CONFIG; do [ -e \"$config\" ] && break; done; exec python -m serve_app \"$config\""]
# Kubernetes has probes of its own. A start takes 20 to 60 s, and this asks for no token.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["wget", "--quiet", "--tries=1", "--timeout=4", "--output-document=-", "http://127.0.0.1:8000/liveness"]

# ---- No GPU, synthetic models; Azure's libraries, so that it can deliver. ----
FROM base AS cpu
# Editable: earth2serve is the folder /app, in which its examples and configurations lie as well.
RUN pip install -c constraints.txt -e '.[azure]'

# ---- What is compiled. Its tools stay here. ----
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}-${CUDA} AS wheels
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /home/ray/build
# `models` for all, `fcn3` for FCN3 alone.
ARG MODELS=models
# The revisions that Earth2Studio 0.19.0 pins (docs/models.md).
ARG TORCH_HARMONICS=a632ca748a12bd9f74dbc1e00653317810991f74
ARG MAKANI=b38fcb2799d7dbc146fa60459f3f9823394a8bf1
ARG EARTH2GRID=11dcf1b0787a7eb6a8497a3a5a5e1fdcc31232d3
# Earth2Studio pins none; of NATTEN's releases the one for the torch of constraints.txt.
ARG NATTEN=0.21.7
# A100, H100: what the models' memory asks for. Without a GPU nvcc would not know.
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0"
ARG NATTEN_CUDA_ARCH="8.0;9.0"
# Parallel compilers take some GB of memory each.
ARG MAX_JOBS=4
ENV FORCE_CUDA_EXTENSION=1 FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST} \
    NATTEN_CUDA_ARCH=${NATTEN_CUDA_ARCH} MAX_JOBS=${MAX_JOBS} NATTEN_N_WORKERS=${MAX_JOBS}
COPY --chown=1000:100 constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch setuptools wheel ninja cmake
# What has no wheel of its own, one layer each: the next one's mistake does not cost the last one's hour.
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation -w /home/ray/wheels \
    "torch-harmonics @ git+https://github.com/NVIDIA/torch-harmonics.git@${TORCH_HARMONICS}"
RUN pip wheel --no-cache-dir --no-deps -w /home/ray/wheels \
    "makani @ git+https://github.com/NVIDIA/makani.git@${MAKANI}"
RUN if [[ ${MODELS} == models ]]; then \
      pip wheel --no-cache-dir --no-deps --no-build-isolation -w /home/ray/wheels "natten==${NATTEN}"; \
      pip wheel --no-cache-dir --no-deps --no-build-isolation -w /home/ray/wheels \
        "earth2grid @ git+https://github.com/NVlabs/earth2grid.git@${EARTH2GRID}"; \
    fi

# ---- GPUs. The last one: a build without --target makes it. ----
FROM base AS gpu
ARG MODELS=models
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    EARTH2STUDIO_CACHE=/weights/cache
# Not by RUN --mount, which a builder without BuildKit refuses.
COPY --chown=1000:100 --from=wheels /home/ray/wheels /tmp/wheels
RUN extras=fcn3,data && if [[ ${MODELS} == models ]]; then extras+=,interp-modafno,stormscope; fi \
    && pip install -c constraints.txt --find-links /tmp/wheels /tmp/wheels/*.whl \
        -e '.[azure,earth2studio]' "earth2studio[${extras}]>=0.19,<0.20" \
    && rm -r /tmp/wheels \
    && python -c "import makani, torch_harmonics"
