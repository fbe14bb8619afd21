"""Promises of LLM agents."""
