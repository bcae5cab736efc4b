"""Sizing a deployment from a model's config and the traffic: counting only, without torch."""
