-- /health: what the HTTP layer alone can do.
wrk.method = "GET"
wrk.path = "/health"
