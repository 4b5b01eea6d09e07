"""The HTTP API as a Ray Serve deployment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, cast

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from deployments.runtime.gpus import hide_gpus
from deployments.runtime.metrics import RAY, Recorder
from deployments.store.executions import ExecutionStore
from serve_app.auth import BearerAuth, Tokens
from serve_app.files.blob import BlobResults
from serve_app.files.disk import DiskResults
from serve_app.http import errors
from serve_app.http.blob_links import BlobLinks
from serve_app.http.context import Context, IngressOptions, Sign
from serve_app.http.custom_workflows import CustomWorkflows, Validate
from serve_app.http.long_poll import ChangeWatcher, look_at
from serve_app.http.middleware import BodyLimit, HeadWithoutBody, SameSiteWrites, UnexpectedErrors
from serve_app.http.openapi import describe
from serve_app.http.routes import executions, health, results, workflows
from serve_app.http.status_cache import StatusCache
from workflows import WORKFLOWS
from workflows.base import Workflow
from workflows.delivery import Container
from workflows.errors import Problem
from workflows.grids import Grid, LambertGrid

__all__ = ["Ingress", "IngressOptions", "create_app"]

logger = logging.getLogger("ray.serve")

Nudge = Callable[[], Awaitable[None]]
Catalogue = Mapping[str, Callable[[Grid, LambertGrid], Workflow]]
"""What makes each workflow, by name."""

BUILT_IN = cast(Catalogue, WORKFLOWS)  # all take the grids; their abstract base does not say so


def create_app(
    options: IngressOptions,
    store: ExecutionStore,
    nudge: Nudge | None = None,
    validators: Mapping[str, Validate] = MappingProxyType({}),
    catalogue: Catalogue = BUILT_IN,
    sign: Sign | None = None,
    metrics: Recorder = RAY,
) -> FastAPI:
    """Assemble the HTTP API; needs no Ray.

    Parameters
    ----------
    options : IngressOptions
        What is served.
    store : ExecutionStore
        The record of executions; stays the caller's to close.
    nudge : callable, optional
        Tells the Conductor that there is something to do. Requests neither wait for it nor fail
        with it.
    validators : mapping, optional
        Has the class of each workflow of a user's own check parameters.
    catalogue : mapping, optional
        What makes each workflow, given the grids; the built-in ones by default.
    sign : callable, optional
        Gives a link to the blobs of an execution; this replica's own where results lie in a
        container.
    metrics : Recorder
        Counts what is downloaded.

    Raises
    ------
    MalformedTokensFile
        If the tokens file cannot be used.
    """
    nudger = Nudger(nudge)
    blob = options.blob_results
    if blob is not None:
        sign = sign or BlobLinks(blob.azure)
    changes = ChangeWatcher(lambda awaited: context.read(look_at, store, awaited))
    context = Context(
        options=options,
        store=store,
        workflows={
            name: catalogue[name](options.grid, options.regional_grid)
            for name in options.callable
            if name not in options.custom
        },
        custom=CustomWorkflows(store, options.custom, validators, options.validation_limit_s),
        observer=StatusCache(store),
        changes=changes,
        results=DiskResults(options.results_dir) if blob is None else BlobResults(blob),
        sign=sign if options.signed_url_s else None,
        nudge=nudger,
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
        middleware=_middleware(options),
    )
    app.state.context = context
    errors.install(app)
    # The routers' own route objects: included routers cost a second search for every request.
    # Workflows first: /v1/infer/workflows is no workflow of that name.
    for module in (workflows, executions, results, health):
        app.router.routes.extend(module.router.routes)
    description = describe(app, with_tokens=options.tokens_file is not None)
    app.openapi = lambda: description  # type: ignore[method-assign]
    return app


def _middleware(options: IngressOptions) -> list[Middleware]:
    """List what surrounds the routes, outermost first."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=options.allow_origins,
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
        # Outside of authentication: browsers send no token with a preflight.
        *([cors] if options.allow_origins else []),
        Middleware(UnexpectedErrors),
        Middleware(HeadWithoutBody),
        *([Middleware(BearerAuth, Tokens(options.tokens_file))] if options.tokens_file else []),
        Middleware(SameSiteWrites, options.allow_origins),
        Middleware(BodyLimit, options.max_body_bytes),
    ]


class Nudger:
    """Sends nudges in the background, one at a time.

    However many requests ask while one is under way, one more follows: it is enough for the
    Conductor to look once after the last of them.
    """

    def __init__(self, nudge: Nudge | None) -> None:
        self._nudge = nudge
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def __call__(self) -> None:
        """See to it that a nudge is sent from now on."""
        if self._nudge is None:
            return
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(self._nudge), name="nudge")

    async def _send(self, nudge: Nudge) -> None:
        while self._again:
            self._again = False
            try:
                await nudge()
            except Exception as error:
                # The Conductor looks by itself now and then: nothing is lost, only later.
                logger.warning("the Conductor could not be nudged: %r", error)


@serve.deployment(
    name="Ingress",
    # Long polls and downloads are held open; what must be bounded is the queue, in the store.
    max_ongoing_requests=1000,
    ray_actor_options={"num_cpus": 0.1, "num_gpus": 0},
)
@serve.ingress()
class Ingress:
    """Answers HTTP; any number of replicas.

    Parameters
    ----------
    options : IngressOptions
        What is served.
    conductor : DeploymentHandle
        Has ``nudge()``.
    custom : dict of str to DeploymentHandle, optional
        Users' own workflows, which have ``validate(parameters)``.
    blob_uploader : DeploymentHandle, optional
        Has ``sign(container, workflow, execution_id, lifetime_s)``.
    """

    def __init__(
        self,
        options: IngressOptions,
        conductor: DeploymentHandle[Any],
        custom: dict[str, DeploymentHandle[Any]] | None = None,
        blob_uploader: DeploymentHandle[Any] | None = None,
    ) -> None:
        hide_gpus()
        self._options = options
        self._custom = custom or {}
        self._conductor = conductor
        self._blob_uploader = blob_uploader
        self._store = ExecutionStore(options.store_url)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Give the application; Serve calls this in the replica, after the constructor."""
        validators = {name: partial(_validate, each) for name, each in self._custom.items()}
        uploader = self._blob_uploader
        sign = partial(_sign, uploader) if uploader is not None else None
        nudge = partial(_nudge, self._conductor)
        return create_app(self._options, self._store, nudge, validators, sign=sign)


async def _nudge(conductor: DeploymentHandle[Any]) -> None:
    await conductor.nudge.remote()


async def _sign(
    blob_uploader: DeploymentHandle[Any], container: Container, *args: str | float
) -> str:
    url: str = await blob_uploader.sign.remote(container, *args)
    return url


async def _validate(
    workflow: DeploymentHandle[Any], parameters: Mapping[str, Any]
) -> list[Problem]:
    found: list[Problem] = await workflow.validate.remote(parameters)
    return found
