"""stub."""
def write_reports(results, folder, pictures=None):
    (folder/"report.md").write_text("stub\n")
    return folder
