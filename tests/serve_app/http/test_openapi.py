"""Schemathesis over the OpenAPI description: no response is 5xx, and all are documented."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import schemathesis
import sqlalchemy as sa
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks, not_a_server_error

from deployments.store.conductor_view import ConductorStore
from deployments.store.executions import Submitted
from deployments.store.schema import conductors
from serve_app.http.admission import Admitted, check, submit
from serve_app.http.context import Context
from serve_app.http.create_app import create_app
from serve_app.http.json_body import parse_submit
from serve_app.http.options import IngressOptions
from tests.serve_app.conftest import WORKFLOW, Conductor, no_nudge
from workflows.execution import Status

load_all_checks()
CONFORMANCE = CHECKS.get_by_names(
    ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
STATES = (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """Return a healthy API with executions in all final states."""
    folder = tmp_path_factory.mktemp("api")
    store = ConductorStore(f"sqlite:///{folder}/store.db")
    options = IngressOptions(
        store_url="sqlite://",
        storage={"results_dir": folder / "results", "work_dir": folder / "work"},
        exposed=(WORKFLOW,),
        grid={"n_lat": 19, "n_lon": 36},
        limits={"max_output_gb": 1.0},
        queue={"max_size": 20},
    )
    app = create_app(options, store, no_nudge)
    context: Context = app.state.context
    conductor = Conductor(store)
    for state in STATES:
        execution_id = _submit(context).execution.execution_id
        conductor.start()
        conductor.advance(execution_id, 2)
        if state in (Status.COMPLETED, Status.EXPIRED):
            conductor.complete(execution_id)
        if state != Status.COMPLETED:
            conductor.end(execution_id, state)
        folder = options.storage.results_dir / WORKFLOW / execution_id
        folder.mkdir(parents=True)
        (folder / "0").write_bytes(b"0" * 100)
    with store.engine.begin() as connection:
        # The test may take longer than the limit on the age of the heartbeat.
        soon = datetime.now(UTC) + timedelta(hours=1)
        connection.execute(sa.update(conductors).values(heartbeat_at=soon))
    yield app
    store.close()


def _submit(context: Context) -> Submitted:
    workflow = context.workflows[WORKFLOW]
    admitted = check(context, workflow, parse_submit(b"{}", None), None)
    assert isinstance(admitted, Admitted)
    return submit(context, workflow, admitted)


@pytest.mark.slow
def test_no_response_is_5xx(app: FastAPI) -> None:
    known = app.state.context.store.list_executions(WORKFLOW, statuses=STATES)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    covered = set()

    def send(case: schemathesis.Case) -> None:
        # Random names never exist, so most examples use existing ones.
        draw = len(repr((case.query, case.headers, case.body, case.path_parameters)))
        if "workflow" in case.path_parameters and draw % 4:
            case.path_parameters["workflow"] = WORKFLOW
        if "execution_id" in case.path_parameters and draw % 3:
            case.path_parameters["execution_id"] = known[draw % len(known)].execution_id
            # Nothing is removed here, and the response would wait for it.
            if case.method == "DELETE":
                case.query = {}
        response = case.call_and_validate(checks=[not_a_server_error, *CONFORMANCE])
        covered.add((case.operation.label, response.status_code))

    profile = settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    for result in schema.get_all_operations():
        operation = result.ok()
        # Without a 422, only the path can be invalid.
        refuses = "422" in operation.definition.raw["responses"]
        for mode in [GenerationMode.POSITIVE, *[GenerationMode.NEGATIVE] * refuses]:
            profile(given(case=operation.as_strategy(generation_mode=mode))(send))()
    # The examples reached every operation.
    assert len({label for label, _ in covered}) == 14
    for label in (
        "GET /v1/infer/{workflow}",
        "GET /v1/infer/{workflow}/{execution_id}/status",
        "GET /v1/infer/{workflow}/{execution_id}/results",
    ):
        assert (label, 200) in covered
    assert ("POST /v1/infer/{workflow}", 422) in covered


def test_security_is_described_if_tokens_are_required(serve, tmp_path, app):
    assert "401" not in str(app.openapi()["paths"])
    tokens = tmp_path / "tokens"
    tokens.write_text("a:" + "0" * 64)
    described = serve(auth={"tokens_file": tokens}).app.openapi()
    assert described["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for path, operations in described["paths"].items():
        for operation in operations.values():
            assert ("401" in operation["responses"]) == (path != "/liveness")
            assert ("security" in operation) == (path != "/liveness")
