/** Line icons of this page, 20 by 20. They say nothing to a screen reader: what they stand for is said beside them. */

const PATHS = {
  sandbox: "M3 7.5 10 4l7 3.5v6L10 17l-7-3.5zM3 7.5l7 3.5 7-3.5M10 11v6",
  image: "M10 3 3 6.5l7 3.5 7-3.5zM3 10l7 3.5 7-3.5M3 13.5 10 17l7-3.5",
  folder: "M2.5 5.5a1 1 0 0 1 1-1h4l1.8 2h7.2a1 1 0 0 1 1 1v7.5a1 1 0 0 1-1 1h-13a1 1 0 0 1-1-1z",
  file: "M5 2.5h6.5L15.5 6.500V17.500H5zM11.500 2.500V6.500H15.500",
  plus: "M10 4v12M4 10h12",
  close: "M5 5l10 10M15 5 5 15",
  trash: "M3.5 5.500h13M8 5.500V3.500h4v2M5 5.500l.8 11h8.400l.8-11M8.300 8.500v5M11.700 8.500v5",
  pause: "M7 4.500v11M13 4.500v11",
  play: "M6 4l10 6-10 6z",
  stop: "M5 5h10v10H5z",
  terminal: "M3 4h14v12H3zM6 8l2.500 2L6 12M10.500 12.500H14",
  upload: "M10 13V4M6.500 7.300 10 4l3.500 3.300M3.500 13v3.500h13V13",
  download: "M10 4v9M6.500 9.700 10 13l3.500-3.300M3.500 13v3.500h13V13",
  search: "M9 3.500a5.500 5.500 0 1 1 0 11 5.500 5.500 0 0 1 0-11zM13 13l4 4",
  sun: "M10 6.500a3.500 3.500 0 1 1 0 7 3.500 3.500 0 0 1 0-7zM10 1.800v1.700M10 16.500v1.700M1.800 10h1.700M16.500 10h1.700M4.200 4.200l1.200 1.200M14.600 14.600l1.200 1.200M4.200 15.800l1.200-1.200M14.600 5.400l1.200-1.200",
  moon: "M16.500 12.200A7 7 0 0 1 7.800 3.500a7 7 0 1 0 8.700 8.700z",
  contrast: "M10 3a7 7 0 1 1 0 14 7 7 0 0 1 0-14zM10 3v14M10 6.500h4.900M10 10h7M10 13.500h4.900",
  help: "M10 3a7 7 0 1 1 0 14 7 7 0 0 1 0-14zM7.900 8a2.200 2.200 0 1 1 3.300 1.900c-.8.500-1.200.9-1.200 1.800M10 14.200v.1",
  leave: "M8 3.500H3.500v13H8M12 6.500 15.500 10 12 13.500M15.500 10H7.500",
  refresh: "M16 5v4h-4M16 9a6.300 6.300 0 1 0 .3 3",
  chevron: "M8 5l5 5-5 5",
  warning: "M10 3 18 16.500H2zM10 8v4M10 14.300v.1",
  check: "M4 10.500l4 4 8-9",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}

/** The house on sand. */
export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
      <rect class="mark-ground" width="32" height="32" rx="8" />
      <path class="mark-house" d="M7 16.500 16 8l9 8.500M10 17v7h12v-7" />
      <path class="mark-sand" d="M10 21.200c2-1.500 4-1.500 6 0s4 1.500 6 0" />
    </svg>
  );
}
