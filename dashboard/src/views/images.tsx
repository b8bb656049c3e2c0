/** Images of the server. */

import { useEffect, useState } from "preact/hooks";
import { ask, path, words } from "../api";
import { bytes, moment, visible } from "../format";
import { Button, Nothing, Trouble, Waiting } from "../ui/controls";
import { confirm } from "../ui/dialog";
import { failed, said } from "../ui/notice";
import type { Image } from "../wire";
import { PullDialog } from "./pull";

/** Characters of a digest that tell images apart. */
const DIGEST_CHARS = 19;

export function ImagesView() {
  const [images, setImages] = useState<readonly Image[]>();
  const [trouble, setTrouble] = useState<string>();
  const [pulling, setPulling] = useState(false);
  const look = (): void => {
    setTrouble(undefined);
    ask<{ images: Image[] }>("/v1/images").then(
      (list) => setImages(list.images),
      (error: unknown) => setTrouble(words(error)),
    );
  };
  useEffect(look, []);
  const remove = async (image: Image): Promise<void> => {
    const yes = await confirm({
      title: `Remove the image ${visible(image.name)}?`,
      text: "Its content is deleted with its last name. Sandboxes cannot be made from it any more.",
      action: "Remove",
    });
    if (!yes) return;
    try {
      await ask(path(["v1", "images", image.name]), { method: "DELETE" });
      said(`${visible(image.name)} removed`);
    } catch (error) {
      failed(words(error));
    }
    look();
  };
  return (
    <div class="view">
      <div class="view-head">
        <h1>
          Images <span class="count">{images?.length ?? ""}</span>
        </h1>
        <div class="head-actions">
          <Button icon="refresh" onClick={look}>
            Refresh
          </Button>
          <Button kind="primary" icon="download" onClick={() => setPulling(true)}>
            Pull image
          </Button>
        </div>
      </div>
      {pulling && <PullDialog onClose={() => setPulling(false)} onPulled={look} />}
      {trouble !== undefined && <Trouble again={look}>{trouble}</Trouble>}
      {trouble === undefined && !images && <Waiting label="Loading images" />}
      {images?.length === 0 && (
        <Nothing icon="image" title="No images">
          <p>
            Pull one from a registry, or add one on the server with <code>sandhaus image import</code>.
          </p>
        </Nothing>
      )}
      {images && images.length > 0 && (
        <table class="list" role="table">
          <caption class="unseen">Images, by name</caption>
          <thead role="rowgroup">
            <tr role="row">
              <th role="columnheader">Name</th>
              <th role="columnheader">Kind</th>
              <th role="columnheader">Size</th>
              <th role="columnheader">Made</th>
              <th role="columnheader">Digest</th>
              <th role="columnheader">
                <span class="unseen">Actions</span>
              </th>
            </tr>
          </thead>
          <tbody role="rowgroup">
            {images.map((image) => (
              <tr role="row" key={image.name}>
                <th role="rowheader" scope="row" class="name">
                  <bdi>{visible(image.name)}</bdi>
                </th>
                <td role="cell" data-label="Kind">
                  {visible(image.kind)}
                </td>
                <td role="cell" data-label="Size" class="number">
                  {image.size_bytes > 0 ? bytes(image.size_bytes) : "–"}
                </td>
                <td role="cell" data-label="Made" class="number">
                  {moment(image.created_at)}
                </td>
                <td role="cell" data-label="Digest">
                  <code title={image.digest}>{image.digest.slice(0, DIGEST_CHARS)}</code>
                </td>
                <td role="cell" class="row-actions">
                  {image.kind !== "host" && (
                    <Button bare kind="quiet" icon="trash" onClick={() => void remove(image)}>
                      {`Remove ${visible(image.name)}`}
                    </Button>
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </div>
  );
}
