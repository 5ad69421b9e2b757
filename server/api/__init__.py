"""The API: HTTP for people and programs, who submit runs, follow and stop them. The one room with FastAPI."""
