/** Workspaces: folders that outlive the sandboxes that show them. */

import { useEffect, useState } from "preact/hooks";
import { ApiError, ask, path, words } from "../api";
import { bytes, moment } from "../format";
import { address, go } from "../route";
import { Button, Nothing, Trouble, Waiting } from "../ui/controls";
import { confirm } from "../ui/dialog";
import { Icon } from "../ui/icon";
import { failed, said } from "../ui/notice";
import type { Workspace } from "../wire";
import { workspaceFiles } from "./file-source";
import { Files } from "./files";

/** Deletes after a question; one that is in use asks again. */
async function remove(id: string): Promise<boolean> {
  const yes = await confirm({
    title: `Delete the workspace ${id}?`,
    text: "All files in it are deleted. This cannot be undone.",
    action: "Delete",
  });
  if (!yes) return false;
  try {
    await ask(path(["v1", "workspaces", id]), { method: "DELETE" });
  } catch (error) {
    if (!(error instanceof ApiError && error.code === "WORKSPACE_IN_USE")) {
      failed(words(error));
      return false;
    }
    const anyway = await confirm({
      title: `${id} is in use`,
      text: `${error.message}. Deleted anyway, it is gone from under the sandboxes that show it.`,
      action: "Delete anyway",
    });
    if (!anyway) return false;
    try {
      await ask(path(["v1", "workspaces", id], { force: "true" }), { method: "DELETE" });
    } catch (again) {
      failed(words(again));
      return false;
    }
  }
  said(`Workspace ${id} deleted`);
  return true;
}

export function WorkspacesView() {
  const [workspaces, setWorkspaces] = useState<readonly Workspace[]>();
  const [trouble, setTrouble] = useState<string>();
  const [off, setOff] = useState(false);
  const look = (): void => {
    setTrouble(undefined);
    ask<{ workspaces: Workspace[] }>("/v1/workspaces").then(
      (list) => setWorkspaces(list.workspaces),
      (error: unknown) => {
        if (error instanceof ApiError && error.code === "INVALID_WORKSPACE") setOff(true);
        else setTrouble(words(error));
      },
    );
  };
  useEffect(look, []);
  return (
    <div class="view">
      <div class="view-head">
        <h1>
          Workspaces <span class="count">{workspaces?.length ?? ""}</span>
        </h1>
        {!off && (
          <Button icon="refresh" onClick={look}>
            Refresh
          </Button>
        )}
      </div>
      {trouble !== undefined && <Trouble again={look}>{trouble}</Trouble>}
      {off && (
        <Nothing icon="folder" title="This server has no workspaces">
          <p>
            Its configuration turns them on: <code>workspace.enabled: true</code>.
          </p>
        </Nothing>
      )}
      {trouble === undefined && !off && !workspaces && <Waiting label="Loading workspaces" />}
      {workspaces?.length === 0 && (
        <Nothing icon="folder" title="No workspaces yet">
          <p>One is made when the first sandbox names it.</p>
        </Nothing>
      )}
      {workspaces && workspaces.length > 0 && (
        <table class="list" role="table">
          <caption class="unseen">Workspaces, by name</caption>
          <thead role="rowgroup">
            <tr role="row">
              <th role="columnheader">Name</th>
              <th role="columnheader">Used</th>
              <th role="columnheader">Shown by</th>
              <th role="columnheader">Made</th>
              <th role="columnheader">
                <span class="unseen">Actions</span>
              </th>
            </tr>
          </thead>
          <tbody role="rowgroup">
            {workspaces.map((workspace) => (
              <tr role="row" key={workspace.id}>
                <th role="rowheader" scope="row" class="name">
                  <a class="row-link" href={address({ place: "workspace", id: workspace.id })}>
                    {workspace.id}
                  </a>
                </th>
                <td role="cell" data-label="Used" class="number">
                  {used(workspace)}
                </td>
                <td role="cell" data-label="Shown by" class="number">
                  {workspace.session_count === 1 ? "1 sandbox" : `${workspace.session_count ?? 0} sandboxes`}
                </td>
                <td role="cell" data-label="Made" class="number">
                  {moment(workspace.created_at ?? "")}
                </td>
                <td role="cell" class="row-actions">
                  <Button
                    bare
                    kind="quiet"
                    icon="trash"
                    onClick={() => void remove(workspace.id).then((done) => done && look())}
                  >
                    {`Delete ${workspace.id}`}
                  </Button>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </div>
  );
}

function used({ used_bytes, quota_bytes }: Workspace): string {
  const now = used_bytes === undefined ? "–" : bytes(used_bytes);
  return quota_bytes === undefined ? now : `${now} of ${bytes(quota_bytes)}`;
}

export function WorkspaceView({ id }: { id: string }) {
  return (
    <div class="view">
      <nav aria-label="Breadcrumb" class="crumbs">
        <a href={address({ place: "workspaces" })}>Workspaces</a>
        <Icon name="chevron" />
        <span aria-current="page">{id}</span>
      </nav>
      <div class="view-head">
        <h1>{id}</h1>
        <Button
          kind="danger"
          icon="trash"
          onClick={() => void remove(id).then((done) => done && go({ place: "workspaces" }))}
        >
          Delete
        </Button>
      </div>
      <section class="panel">
        <Files source={workspaceFiles(id)} root={id} />
      </section>
    </div>
  );
}
