"""The MLflow tracking server of a team: its store made ready, its processes started and stopped, health, back-up."""
