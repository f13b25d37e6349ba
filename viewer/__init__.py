"""Postgres -> pages: what the functions of schema `analytics` say, to look at. Reads only; knows no Kafka."""
