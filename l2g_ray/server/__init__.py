"""The MLflow tracking server of a team: settings checked, MLflow's own server run and ended, health, back-up."""
