"""Code generated from ``protos/`` by ``make protos``. Do not edit it by hand."""
