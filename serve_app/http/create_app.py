"""Assembles the HTTP API as a FastAPI application; needs no Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import cast

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from deployments.results.blob_links import BlobLinks
from deployments.runtime.metrics import RAY, Recorder
from deployments.store.executions import ExecutionStore
from serve_app.files.blob import BlobResults
from serve_app.files.buffers import Buffers
from serve_app.files.disk import DiskResults
from serve_app.http.access import BearerAuth, KnownHosts, SameSiteWrites
from serve_app.http.context import Context, Sign
from serve_app.http.custom_workflows import CustomChecks, Validate
from serve_app.http.described_workflows import (
    DescribedWorkflows,
    custom_workflow,
    declared_forecast,
)
from serve_app.http.errors import add_exception_handlers
from serve_app.http.long_poll import ChangeWatcher, read_states
from serve_app.http.middleware import BodyLimit, BoundedBuffers, HeadWithoutBody, UnexpectedErrors
from serve_app.http.nudger import Nudge, Nudger
from serve_app.http.openapi import describe
from serve_app.http.options import AuthOptions, IngressOptions
from serve_app.http.routes import executions, health, results, workflows
from serve_app.http.status_cache import StatusCache
from serve_app.http.tokens import Tokens
from workflows import WORKFLOWS
from workflows.base import Workflow
from workflows.grids import Grid, LambertGrid

Catalogue = Mapping[str, Callable[[Grid, LambertGrid], Workflow]]
"""Constructor of each workflow, by name."""

BUILT_IN = cast(Catalogue, WORKFLOWS)  # all take both grids, which their base does not declare


def create_app(
    options: IngressOptions,
    store: ExecutionStore,
    nudge: Nudge,
    validators: Mapping[str, Validate] = MappingProxyType({}),
    catalogue: Catalogue = BUILT_IN,
    sign: Sign | None = None,
    metrics: Recorder = RAY,
    buffers: Buffers | None = None,
) -> FastAPI:
    """Return the HTTP API as an ASGI application.

    Parameters
    ----------
    store : ExecutionStore
        The caller closes it.
    nudge : callable
        Asks the Conductor to look at the queue. Requests neither wait for it nor fail with it.
    validators : mapping, optional
        For each custom workflow, the call that validates parameters in its replica.
    catalogue : mapping, optional
        Constructors of the built-in workflows.
    sign : callable, optional
        Signs links to blobs. If results are stored in a container, the default signs them in this
        process.
    buffers : Buffers, optional
        Bounds the memory for slow clients.

    Raises
    ------
    MalformedTokensFile
        If the tokens file is unusable.
    """
    storage = options.storage
    blob = storage.blob
    if blob is not None:
        sign = sign or BlobLinks(blob.azure)
    described = {each.name: declared_forecast(each) for each in options.forecasts} | {
        name: custom_workflow(name, output_format) for name, output_format in options.custom.items()
    }
    changes = ChangeWatcher(lambda awaited: context.read(read_states, store, awaited))
    context = Context(
        options=options,
        store=store,
        workflows={
            name: catalogue[name](options.grid, options.regional_grid)
            for name in options.callable
            if name not in described
        },
        described=DescribedWorkflows(store, described),
        custom=CustomChecks(validators, options.validation_limit_s),
        statuses=StatusCache(store),
        changes=changes,
        results=DiskResults(storage.results_dir) if blob is None else BlobResults(blob),
        sign=sign if options.signed_url_s else None,
        nudge=Nudger(nudge),
        metrics=metrics,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await changes.close()

    app = FastAPI(
        title="earth2serve",
        summary="Weather forecasts by NVIDIA Earth2Studio models",
        docs_url=None,  # both pages load their scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=_middleware(options, buffers or Buffers()),
    )
    app.state.context = context
    add_exception_handlers(app)
    # The routes themselves: an included router costs a second search on every request.
    # Workflows come first, so that /v1/infer/workflows is not taken for a workflow's name.
    for module in (workflows, executions, results, health):
        app.router.routes.extend(module.router.routes)
    description = describe(app, with_tokens=options.auth.tokens_file is not None)
    app.openapi = lambda: description  # type: ignore[method-assign]
    return app


def _middleware(options: IngressOptions, buffers: Buffers) -> list[Middleware]:
    """Return the middleware, outermost first."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=options.cors.allow_origins,
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
            "If-Match",
            "If-None-Match",
            "If-Range",
            "Range",
        ],
        expose_headers=[
            "Accept-Ranges",
            "Content-Disposition",
            "Content-Range",
            "ETag",
            "Idempotency-Replayed",
            "Retry-After",
        ],
    )
    return [
        # Outside authentication: browsers send no token with a preflight.
        *([cors] if options.cors.allow_origins else []),
        Middleware(UnexpectedErrors),
        Middleware(HeadWithoutBody),
        *_access(options.auth),
        Middleware(SameSiteWrites, options.cors.allow_origins),
        Middleware(BoundedBuffers, buffers),
        Middleware(BodyLimit, options.limits.max_body_bytes),
    ]


def _access(auth: AuthOptions) -> list[Middleware]:
    """Return what decides who may call: tokens or, without them, the name that is called."""
    if auth.tokens_file is not None:
        return [Middleware(BearerAuth, Tokens(auth.tokens_file))]
    return [] if "*" in auth.allowed_hosts else [Middleware(KnownHosts, auth.allowed_hosts)]
