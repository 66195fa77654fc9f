def write_report(a, b, c):
    pass
