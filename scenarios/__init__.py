"""Scenario generators: functions that return an Avalanche scenario."""
