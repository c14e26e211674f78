"""The marker that the compatibility matrix of the README is made from."""


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "compatibility(integration, feature): what the matrix says works if this passes"
    )
