"""What the package touches of MLflow that MLflow does not promise to keep. Nowhere else: `tests/test_private.py` checks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

# How MLflow's UI shows an experiment: of training, or of generative AI. A parameter of `create_experiment` would replace it.
KIND_TAG = "mlflow.experimentKind"
TRAINING = "custom_model_development"
# Where MLflow's UI keeps a view that somebody shares, and finds it again by its name. A call that makes one would replace it.
VIEW = "l2g-ray"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"


def find_latest_revision() -> str:
    """Return the revision of the tables that the installed MLflow wants.

    MLflow updates some older tables unasked, so a server compares first. `mlflow db` with a command that only checks would
    replace this.
    """
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    return str(ScriptDirectory(db_migrations.__path__[0]).get_current_head())


def upgrade_tables(uri: str) -> None:
    """Do what `mlflow db upgrade URI` does, in this process: make the tables of an empty store, or update older ones.

    The list of processes would show a password in the URI. A variable of the environment for it would replace this.

    Raises
    ------
    alembic.util.exc.CommandError : the tables have a revision that this MLflow does not know.
    """
    from mlflow.db import commands

    commands.main(["upgrade", uri], "mlflow db", standalone_mode=False)


def find_model_files(client: MlflowClient, uri: str) -> str:
    """Return where the files of models:/NAME/VERSION, models:/NAME@ALIAS or models:/ID are, asking the client's store.

    MLflow 3.17's `download_artifacts` asks the process's tracking URI for a model, whichever `tracking_uri` it is given.
    Where it asks that one, this is not needed.
    """
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    found = get_model_name_and_version(client, uri)
    return (
        client.get_logged_model(*found).artifact_location
        if len(found) == 1
        else client.get_model_version_download_uri(*found)
    )
